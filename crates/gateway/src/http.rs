//! The API over HTTP: each handler is one call of [`Admin`].

use std::sync::Arc;

use adit_api::{AddDevice, AddForward, AddIdentity, AddUser, PROBLEM_TYPE, Problem, TraceRequest, path};
use adit_store::{Cursor, Page};
use axum::body::Bytes;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use crate::admin::{Admin, ProfileOptions};

type Shared = State<Arc<Admin>>;

/// The API's routes.
pub fn router(admin: Arc<Admin>) -> Router {
    let item = |path: &str, rest: &str| format!("{path}{rest}");
    Router::new()
        .route(path::USERS, get(users).post(add_user))
        .route(&item(path::USERS, "/{name}"), delete(remove_user))
        .route(&item(path::USERS, "/{name}/suspend"), post(suspend_user))
        .route(&item(path::USERS, "/{name}/resume"), post(resume_user))
        .route(path::DEVICES, get(devices).post(add_device))
        .route(&item(path::DEVICES, "/{user}/{device}"), delete(revoke_device))
        .route(&item(path::PROFILES, "/{user}/{device}"), get(profile))
        .route(path::SESSIONS, get(sessions))
        .route(&item(path::SESSIONS, "/{id}"), delete(close_session))
        .route(&item(path::ENTRANCES, "/{port}/release"), post(release_port))
        .route(path::FORWARDS, get(forwards).post(add_forward))
        .route(&item(path::FORWARDS, "/{id}"), delete(remove_forward))
        .route(path::NAT, get(blocks))
        .route(path::TRACE, post(trace))
        .route(path::TRAIL, get(verify_trail))
        .route(path::IDENTITIES, get(identities).post(add_identity))
        .route(&item(path::IDENTITIES, "/{name}"), delete(remove_identity))
        .route(&item(path::IDENTITIES, "/{name}/rotate"), post(rotate_identity))
        .route(path::CA, get(ca))
        .route(path::STATUS, get(status))
        .route(path::RELOAD, post(reload))
        .route(path::METRICS, get(metrics))
        .fallback(|| async { Failed(Problem::new(404, "Not Found", "there is no such resource")) })
        .method_not_allowed_fallback(|| async {
            Failed(Problem::new(405, "Method Not Allowed", "this resource does not take that method"))
        })
        .with_state(admin)
}

/// A problem as a response.
struct Failed(Problem);

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [(header::CONTENT_TYPE, PROBLEM_TYPE)], Json(self.0)).into_response()
    }
}

impl From<Problem> for Failed {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<JsonRejection> for Failed {
    fn from(rejection: JsonRejection) -> Self {
        Self(Problem::new(rejection.status().as_u16(), "Bad Request", rejection.body_text()))
    }
}

impl From<QueryRejection> for Failed {
    fn from(rejection: QueryRejection) -> Self {
        Self(Problem::new(rejection.status().as_u16(), "Bad Request", rejection.body_text()))
    }
}

/// A body whose rejection is a [`Problem`].
#[derive(FromRequest)]
#[from_request(via(Json), rejection(Failed))]
struct Body<T>(T);

/// Query parameters whose rejection is a [`Problem`].
#[derive(FromRequestParts)]
#[from_request(via(Query), rejection(Failed))]
struct Params<T>(T);

type Answer<T> = Result<Json<T>, Failed>;

/// Runs what touches the disk where it holds up nobody else.
async fn blocking<T: Serialize + Send + 'static>(
    admin: Arc<Admin>,
    call: impl FnOnce(&Admin) -> Result<T, Problem> + Send + 'static,
) -> Answer<T> {
    let result = tokio::task::spawn_blocking(move || call(&admin)).await;
    let result = result.map_err(|error| Problem::new(500, "Internal Server Error", error.to_string()))?;
    Ok(Json(result?))
}

/// Like [`blocking`], for calls that also wait for the control thread.
async fn waiting<T, F>(admin: Arc<Admin>, call: impl FnOnce(Arc<Admin>) -> F + Send + 'static) -> Answer<T>
where
    T: Serialize + Send + 'static,
    F: Future<Output = Result<T, Problem>>,
{
    let runtime = tokio::runtime::Handle::current();
    let result = tokio::task::spawn_blocking(move || runtime.block_on(call(admin))).await;
    let result = result.map_err(|error| Problem::new(500, "Internal Server Error", error.to_string()))?;
    Ok(Json(result?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PageParams {
    #[serde(default)]
    after: Option<String>,
    #[serde(default)]
    limit: Option<u32>,
    #[serde(default)]
    user: Option<String>,
}

impl PageParams {
    fn page(&self) -> Page {
        Page { after: self.after.clone().map(Cursor::new), limit: self.limit }
    }
}

async fn users(State(admin): Shared, Params(params): Params<PageParams>) -> Answer<adit_api::UserList> {
    blocking(admin, move |admin| admin.users(&params.page())).await
}

async fn add_user(State(admin): Shared, Body(request): Body<AddUser>) -> Answer<adit_api::User> {
    waiting(admin, |admin| async move { admin.add_user(request).await }).await
}

async fn remove_user(State(admin): Shared, Path(name): Path<String>) -> Answer<adit_api::UserCut> {
    waiting(admin, |admin| async move { admin.remove_user(&name).await }).await
}

async fn suspend_user(State(admin): Shared, Path(name): Path<String>) -> Answer<adit_api::UserCut> {
    waiting(admin, |admin| async move { admin.suspend_user(&name).await }).await
}

async fn resume_user(State(admin): Shared, Path(name): Path<String>) -> Answer<adit_api::User> {
    blocking(admin, move |admin| admin.resume_user(&name)).await
}

async fn devices(State(admin): Shared, Params(params): Params<PageParams>) -> Answer<adit_api::DeviceList> {
    blocking(admin, move |admin| admin.devices(params.user.as_deref(), &params.page())).await
}

async fn add_device(State(admin): Shared, Body(request): Body<AddDevice>) -> Answer<adit_api::Device> {
    waiting(admin, |admin| async move { admin.add_device(request).await }).await
}

async fn revoke_device(
    State(admin): Shared,
    Path((user, device)): Path<(String, String)>,
) -> Answer<adit_api::DeviceRevoked> {
    waiting(admin, |admin| async move { admin.revoke_device(&user, &device).await }).await
}

async fn profile(
    State(admin): Shared,
    Path((user, device)): Path<(String, String)>,
    Params(options): Params<ProfileOptions>,
) -> Result<Response, Failed> {
    let made = tokio::task::spawn_blocking(move || admin.profile(&user, &device, &options)).await;
    let made = made.map_err(|error| Problem::new(500, "Internal Server Error", error.to_string()))?;
    // The body owns the text, which holds a private key, and wipes it once it is sent.
    let body = Bytes::from_owner(made?);
    Ok(([(header::CONTENT_TYPE, "application/x-openvpn-profile")], body).into_response())
}

async fn sessions(State(admin): Shared) -> Answer<adit_api::SessionList> {
    Ok(Json(admin.sessions().await?))
}

async fn close_session(State(admin): Shared, Path(id): Path<String>) -> Answer<adit_api::SessionClosed> {
    Ok(Json(admin.close_session(&id).await?))
}

async fn release_port(State(admin): Shared, Path(port): Path<u16>) -> Answer<adit_api::PortReleased> {
    waiting(admin, move |admin| async move { admin.release_port(port).await }).await
}

async fn forwards(State(admin): Shared, Params(params): Params<PageParams>) -> Answer<adit_api::ForwardList> {
    blocking(admin, move |admin| admin.forwards(params.user.as_deref(), &params.page())).await
}

async fn add_forward(State(admin): Shared, Body(request): Body<AddForward>) -> Answer<adit_api::ForwardList> {
    waiting(admin, |admin| async move { admin.add_forward(request).await }).await
}

async fn remove_forward(State(admin): Shared, Path(id): Path<String>) -> Answer<adit_api::Forward> {
    waiting(admin, |admin| async move { admin.remove_forward(&id).await }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserParams {
    #[serde(default)]
    user: Option<String>,
}

async fn blocks(State(admin): Shared, Params(params): Params<UserParams>) -> Answer<adit_api::BlockList> {
    blocking(admin, move |admin| admin.blocks(params.user.as_deref())).await
}

async fn trace(State(admin): Shared, Body(request): Body<TraceRequest>) -> Answer<adit_api::Traces> {
    blocking(admin, move |admin| admin.trace(&request)).await
}

async fn verify_trail(State(admin): Shared) -> Answer<adit_api::TrailReport> {
    blocking(admin, Admin::verify_trail).await
}

async fn identities(State(admin): Shared) -> Answer<adit_api::IdentityList> {
    blocking(admin, Admin::identities).await
}

async fn add_identity(State(admin): Shared, Body(request): Body<AddIdentity>) -> Answer<adit_api::Identity> {
    blocking(admin, move |admin| admin.add_identity(&request)).await
}

async fn remove_identity(State(admin): Shared, Path(name): Path<String>) -> Answer<serde_json::Value> {
    waiting(admin, |admin| async move {
        admin.remove_identity(&name).await?;
        Ok(serde_json::json!({ "identity": name }))
    })
    .await
}

async fn rotate_identity(State(admin): Shared, Path(name): Path<String>) -> Answer<adit_api::Identity> {
    blocking(admin, move |admin| admin.rotate_identity(&name)).await
}

async fn ca(State(admin): Shared) -> Answer<adit_api::CaStatus> {
    blocking(admin, Admin::ca_status).await
}

async fn status(State(admin): Shared) -> Answer<adit_api::Status> {
    Ok(Json(admin.status().await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReloadParams {
    #[serde(default)]
    dry_run: bool,
}

async fn reload(
    State(admin): Shared,
    Params(params): Params<ReloadParams>,
) -> Answer<adit_api::ReloadReport> {
    waiting(admin, move |admin| async move { admin.reload(params.dry_run).await }).await
}

async fn metrics(State(admin): Shared) -> Result<Response, Failed> {
    let text = admin.metrics().await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}
