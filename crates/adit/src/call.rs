//! Calls of the API: over the running gateway's socket, or, when none runs, in this process.

use std::path::Path;
use std::sync::Arc;

use adit_api::Problem;
use adit_gateway::admin::{Admin, AdminFault};
use adit_gateway::config::{ConfigFault, Loaded};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tower::ServiceExt;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallFault {
    /// The configuration says where the gateway is.
    #[error(transparent)]
    Config(#[from] ConfigFault),
    /// State cannot be opened.
    #[error(transparent)]
    Admin(#[from] AdminFault),
    /// The gateway refused.
    #[error("{}", .0.detail)]
    Refused(Problem),
    /// The gateway is there and does not answer properly.
    #[error("the gateway does not answer: {0}")]
    Transport(String),
    /// No permission for the socket.
    #[error("no permission for {0}: run adit as root, or as a member of the socket's group")]
    Permission(String),
}

/// The way to the API.
#[derive(Debug)]
pub(crate) struct Api<'a> {
    config: &'a Path,
}

impl<'a> Api<'a> {
    /// The API of the gateway with this configuration.
    #[must_use]
    pub(crate) fn new(config: &'a Path) -> Self {
        Self { config }
    }

    /// Calls and reads the answer.
    ///
    /// # Errors
    /// [`CallFault`], worded for people.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<serde_json::Value>,
    ) -> Result<T, CallFault> {
        let bytes = self.bytes(method, path, body).await?;
        serde_json::from_slice(&bytes).map_err(|error| CallFault::Transport(error.to_string()))
    }

    /// Calls and returns the answer as it came.
    ///
    /// # Errors
    /// [`CallFault`], worded for people.
    pub(crate) async fn bytes(
        &self,
        method: Method,
        path: &str,
        body: Option<serde_json::Value>,
    ) -> Result<Bytes, CallFault> {
        let body = body.map_or_else(Bytes::new, |value| Bytes::from(value.to_string()));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "adit")
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(transport)?;
        let socket = Loaded::read(self.config)?.socket();
        let (status, bytes) = match UnixStream::connect(&socket).await {
            Ok(stream) => over_socket(stream, request).await?,
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                return Err(CallFault::Permission(socket.display().to_string()));
            }
            // Nobody is there: the state is free, and this process does what the gateway would.
            Err(_) => in_process(self.config, request).await?,
        };
        if status.is_success() {
            return Ok(bytes);
        }
        let problem = serde_json::from_slice(&bytes).unwrap_or_else(|_| {
            Problem::new(status.as_u16(), "Error", format!("the gateway answered with status {status}"))
        });
        Err(CallFault::Refused(problem))
    }
}

type Answer = (hyper::StatusCode, Bytes);

async fn over_socket(stream: UnixStream, request: Request<Full<Bytes>>) -> Result<Answer, CallFault> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(transport)?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(transport)?;
    let status = response.status();
    let bytes = response.into_body().collect().await.map_err(transport)?.to_bytes();
    Ok((status, bytes))
}

async fn in_process(config: &Path, request: Request<Full<Bytes>>) -> Result<Answer, CallFault> {
    let config = config.to_owned();
    let admin = tokio::task::spawn_blocking(move || Admin::open(&config)).await.map_err(transport)??;
    let router = adit_gateway::http::router(Arc::new(admin));
    let response = router.oneshot(request.map(axum::body::Body::new)).await.map_err(transport)?;
    let status = response.status();
    let bytes = response.into_body().collect().await.map_err(transport)?.to_bytes();
    Ok((status, bytes))
}

fn transport(error: impl std::fmt::Display) -> CallFault {
    CallFault::Transport(error.to_string())
}

/// One segment of a path, with everything that is not plain escaped (RFC 3986 §2.1).
#[must_use]
pub(crate) fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_cannot_leave_its_place() {
        assert_eq!(segment("ann"), "ann");
        assert_eq!(segment("a/../b?c#d e"), "a%2F..%2Fb%3Fc%23d%20e");
        assert_eq!(segment("müller"), "m%C3%BCller");
    }
}
