//! `adit demo`: the whole story on one machine, in network namespaces, with the stock OpenVPN client.
//!
//! ```text
//!  client ann ──┐ 192.0.2.10
//!               ├── gateway ──────── outside
//!  client bob ──┘ 192.0.2.1          198.51.100.2
//!    192.0.2.20     198.51.100.1
//! ```
//!
//! A step counts only when it was seen from outside adit: in the outside server's log, in the client's own log, by
//! a ping that is answered or stops.

mod actors;
mod stage;

use std::time::Duration;

use serde_json::json;

use self::actors::{Gateway, Page, Pinger, StockClient, Visit};
use self::stage::Stage;
use crate::output;

/// Who plays, by user and device: they ask for a page of that name, so that the server's log says who it really was.
const ANN: &str = "ann/laptop";
const BOB: &str = "bob/phone";

/// Runs the story; the error says which step was not seen.
pub(crate) fn run(json: bool) -> Result<(), String> {
    let mut teller = Teller { json, step: 0, seen: Vec::new() };
    let stage = Stage::build()?;
    teller.tell(
        "three networks",
        "two clients, a gateway and an outside web server, each in its own namespace",
    );

    let page = Page::serve(&stage.outside)?;
    let mut gateway = Gateway::start(&stage)?;
    teller.tell(
        "adit init, adit up",
        "a CA, identities and a configuration from nothing; the gateway says `ready`",
    );

    let ann = gateway.add("ann", "laptop")?;
    let bob = gateway.add("bob", "phone")?;
    teller.tell("adit user add, adit profile", "one file for ann's laptop, one for bob's phone");

    let mut ann = StockClient::connect(&stage.ann, "ann", &ann)?;
    let mut bob = StockClient::connect(&stage.bob, "bob", &bob)?;
    teller.tell("openvpn --config", &format!("both clients say: {}", StockClient::UP));

    for (client, who) in [(&stage.ann, ANN), (&stage.bob, BOB)] {
        stage::browse(client, stage::OUTSIDE, stage::PAGE_PORT, who)?;
    }
    let visits = page.visits();
    let exit = |visit: &&Visit| visit.from.ip().to_string() == stage::GATEWAY_OUTSIDE;
    if visits.len() != 2 || visits.iter().filter(exit).count() != 2 {
        return Err(format!(
            "the outside server was to be visited twice by {}; it saw {visits:?}",
            stage::GATEWAY_OUTSIDE
        ));
    }
    teller.tell(
        "they browse",
        &format!("the outside server's log has two visits, both from {}", stage::GATEWAY_OUTSIDE),
    );

    let sessions = gateway.sessions()?;
    for who in [ANN, BOB] {
        if !sessions.iter().any(|session| session == who) {
            return Err(format!("{who} is connected but not in `adit session list`: {sessions:?}"));
        }
    }
    teller.tell("adit session list", "both are known by user and device");

    let traced = trace(&gateway, &visits)?;
    teller.tell("adit trace", &format!("time, address and port out of that log are enough: {traced}"));

    let shelf = Page::serve(&stage.bob)?;
    let port = gateway.forward("bob", "phone", stage::PAGE_PORT)?;
    stage::browse(&stage.outside, stage::GATEWAY_OUTSIDE, port, "outside")?;
    match shelf.visits().as_slice() {
        [visit] if visit.from.ip().to_string() == stage::OUTSIDE => {}
        other => {
            return Err(format!("one visit by {} was to reach bob's phone, not {other:?}", stage::OUTSIDE));
        }
    }
    teller.tell(
        "adit forward add bob phone",
        &format!(
            "the outside asks {} port {port}; the log of the web server on bob's phone has {}",
            stage::GATEWAY_OUTSIDE,
            stage::OUTSIDE
        ),
    );

    let ann_pings = Pinger::start(&stage.ann)?;
    let bob_pings = Pinger::start(&stage.bob)?;
    ann_pings.wait_for_answers(5)?;
    bob_pings.wait_for_answers(5)?;
    let cut = gateway.remove("ann")?;
    ann.wait_for("AUTH_FAILED", Duration::from_secs(5))?;
    let silent = ann_pings.wait_for_silence(Duration::from_secs(5))?;
    bob_pings.wait_for_answers(5)?;
    ann.wait_for_exit(Duration::from_secs(10))?;
    teller.tell(
        "adit user remove ann",
        &format!(
            "it returned after {cut} ms; ann's ping stopped ({silent} answers, then none), her client says AUTH_FAILED and \
             ends; bob's goes on"
        ),
    );

    let traced = trace(&gateway, &visits)?;
    teller.tell("adit trace", &format!("that she is gone changes nothing: {traced}"));

    bob.stop()?;
    gateway.stop()?;
    let left = stage.left_behind()?;
    if !left.is_empty() {
        return Err(format!("the gateway left something behind on its machine: {left}"));
    }
    teller.tell("the end", "the gateway has put its machine back as it was");
    teller.finish();
    Ok(())
}

/// Who each visit is traced to; an error when that is not who said so to the server.
fn trace(gateway: &Gateway, visits: &[Visit]) -> Result<String, String> {
    let mut traced = Vec::new();
    for visit in visits {
        let found = gateway.trace(visit)?;
        if found != [visit.page.as_str()] {
            return Err(format!("{visit:?} was traced to {found:?}"));
        }
        traced.push(format!("{} was {}", visit.from, visit.page));
    }
    Ok(traced.join(", "))
}

/// Tells the story as it goes.
struct Teller {
    json: bool,
    step: usize,
    seen: Vec<serde_json::Value>,
}

impl Teller {
    fn tell(&mut self, what: &str, seen: &str) {
        self.step += 1;
        if self.json {
            self.seen.push(json!({ "step": self.step, "what": what, "seen": seen }));
        } else {
            output::print(&format!("{}. {what}\n   {seen}\n", self.step));
        }
    }

    fn finish(self) {
        if self.json {
            output::json(&json!({ "ok": true, "steps": self.seen }));
        }
    }
}
