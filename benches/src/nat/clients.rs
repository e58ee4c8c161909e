//! A gateway with many clients is loaded; then some of them go and come back.

use std::fmt::Write;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use adit_host::nft;
use adit_plan::rules::{BLOCKS, render_nat};
use serde_json::json;

use super::{
    CLIENTS, DESTINATIONS, INSIDE, Iptables, Net, PORT, SERVER, TABLE, addition, block, document, inner,
    left_out, load, netfilter, removal,
};
use crate::report::{Report, Table};

/// Clients that go and come back, one by one.
const MOVING: u32 = 200;
/// As many as the time allows where everything is loaded anew for each.
const RELOADS: u32 = 2;

#[derive(Debug, Clone, Copy)]
enum Way {
    Document(Iptables),
    /// The program nft and adit's table.
    Nft,
    /// Each client that goes has connections to so many destinations.
    Adit(u32),
}

impl Way {
    const ALL: [Self; 5] = [
        Self::Document(Iptables::Legacy),
        Self::Document(Iptables::Nft),
        Self::Nft,
        Self::Adit(1),
        Self::Adit(DESTINATIONS),
    ];

    fn name(self) -> String {
        match self {
            Self::Document(iptables) => iptables.name().to_owned(),
            Self::Nft => "nft, a process for each".to_owned(),
            Self::Adit(each) => format!("adit, {} connections tracked", MOVING * each),
        }
    }

    /// What loading took, and each change.
    fn measure(self, net: &Net) -> Result<Times, String> {
        match self {
            Self::Document(iptables) => net.gateway.run_in(|| reload(iptables)),
            Self::Nft => Ok(net.gateway.run_in(processes)),
            Self::Adit(each) => Ok(elements(net, each)),
        }
    }
}

#[derive(Debug, Default)]
struct Times {
    load: Duration,
    removed: Vec<Duration>,
    added: Vec<Duration>,
}

impl Times {
    /// Milliseconds: loading, then median and 99th percentile of each change.
    fn figures(mut self) -> Vec<f64> {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let mut figures = vec![ms(self.load)];
        for times in [&mut self.added, &mut self.removed] {
            times.sort_unstable();
            figures.extend([50, 99].map(|percent| ms(times[times.len() * percent / 100])));
        }
        figures
    }
}

/// Measures and adds a table.
pub(super) fn run(report: &mut Report, rounds: u32) {
    let mut figures = Way::ALL.map(|way| (way, Vec::new()));
    for round in 1..=rounds {
        for (way, figures) in &mut figures {
            match way.measure(&Net::new()) {
                Ok(times) => {
                    let figure = times.figures();
                    report.raw(&format!("{}, {round}", way.name()), &json!(figure));
                    figures.push(figure);
                }
                Err(reason) => left_out(report, &way.name(), &reason),
            }
        }
    }
    let mut table = Table::new(
        format!("Clients that come and go where {CLIENTS} are"),
        &["load ms", "add ms", "add p99 ms", "remove ms", "remove p99 ms"],
        "median (smallest-largest), then the ratio to the first row; load: all of them, where there was none\n  \
         iptables: two rules for each client, written to a file and restored; few attempts, so that p99 is the slowest\n  \
         adit: each client that goes has an equal part of the connections, which end with it",
    );
    for (way, figures) in figures.iter().filter(|(_, figures)| !figures.is_empty()) {
        table.row(&way.name(), figures);
    }
    report.table(table);
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}

/// The published way: each time a new file, and all rules anew.
fn reload(iptables: Iptables) -> Result<Times, String> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let file = directory.path().join("rules.v4");
    let write = |clients| {
        let (took, result) = timed(|| {
            std::fs::write(&file, document(clients)).map_err(|error| error.to_string())?;
            iptables.restore(&file)
        });
        result.map(|()| took)
    };
    let mut times = Times { load: write(CLIENTS)?, ..Times::default() };
    for _ in 0..RELOADS {
        times.removed.push(write(CLIENTS - 1)?);
        times.added.push(write(CLIENTS)?);
    }
    Ok(times)
}

fn processes() -> Times {
    let apply = |text: &str| timed(|| nft::apply(text).expect("nft takes it")).0;
    let element = |client| {
        let (address, from, to) = block(client);
        format!("{} : {address} . {from}-{to}", inner(client))
    };
    let mut all = render_nat(TABLE, INSIDE) + &format!("add element inet {TABLE} {BLOCKS} {{\n");
    for client in 0..CLIENTS {
        // Writing to a string cannot fail.
        let _ = writeln!(all, "{},", element(client));
    }
    let mut times = Times { load: apply(&(all + "}\n")), ..Times::default() };
    for client in 0..MOVING {
        let [remove, add] = [("delete", inner(client).to_string()), ("add", element(client))]
            .map(|(what, element)| format!("{what} element inet {TABLE} {BLOCKS} {{ {element} }}\n"));
        times.removed.push(apply(&remove));
        times.added.push(apply(&add));
    }
    times
}

fn elements(net: &Net, each: u32) -> Times {
    let (load, ()) = timed(|| net.gateway.run_in(|| load(CLIENTS)));
    let _server = net.server.run_in(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).expect("a port"));
    net.client.run_in(|| {
        for client in 0..MOVING {
            let socket = UdpSocket::bind((inner(client), 0)).expect("an address");
            for at in 0..each {
                let to = Ipv4Addr::from(u32::from(SERVER) + at);
                socket.send_to(&[7; 32], (to, PORT)).expect("a way");
            }
        }
    });
    net.gateway.run_in(|| {
        let mut netfilter = netfilter();
        let tracked = netfilter.connection_usage().expect("connections are tracked").count;
        assert!(tracked >= MOVING * each, "only {tracked} connections are tracked");
        let mut times = Times { load, ..Times::default() };
        for client in 0..MOVING {
            let (took, ()) = timed(|| {
                netfilter.change_elements(&[removal(client)]).expect("it was there");
                netfilter.forget_connections(&[inner(client).into()]).expect("connections are tracked");
            });
            times.removed.push(took);
            let (took, result) = timed(|| netfilter.change_elements(&[addition(client)]));
            result.expect("it was gone");
            times.added.push(took);
        }
        times
    })
}
