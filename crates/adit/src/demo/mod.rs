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

use self::actors::{Gateway, Page, Pinger, StockClient};
use self::stage::Stage;
use crate::output;

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

    let before = page.visitors().len();
    for client in [&stage.ann, &stage.bob] {
        stage::browse(client)?;
    }
    let visitors = page.visitors();
    let new = visitors.get(before..).unwrap_or_default();
    if new.len() != 2 || new.iter().any(|from| *from != stage::GATEWAY_OUTSIDE) {
        return Err(format!(
            "the outside server was to be visited twice by {}; it saw {new:?}",
            stage::GATEWAY_OUTSIDE
        ));
    }
    teller.tell(
        "they browse",
        &format!("the outside server's log has two visits, both from {}", stage::GATEWAY_OUTSIDE),
    );

    let sessions = gateway.sessions()?;
    for who in ["ann/laptop", "bob/phone"] {
        if !sessions.iter().any(|session| session == who) {
            return Err(format!("{who} is connected but not in `adit session list`: {sessions:?}"));
        }
    }
    teller.tell("adit session list", "both are known by user and device");

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
