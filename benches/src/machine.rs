//! What the figures were measured on.

use std::process::Command;

use serde::Serialize;

/// The machine and the programs of a run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    /// Processor, as it names itself.
    cpu: String,
    cores: usize,
    memory_gib: u64,
    kernel: String,
    openvpn: String,
    openssl: String,
    haproxy: String,
    sslh: String,
    nft: String,
    iptables: String,
    adit: String,
    /// Load of the machine in the last minute before the run: above zero, something else was running.
    load_before: String,
    time: String,
}

impl Machine {
    pub(crate) fn describe() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let unknown = || "unknown".to_owned();
        let kib = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok());
        let openvpn = says("openvpn", &["--version"]);
        let mut lines = openvpn.lines();
        let adit = adit_testbed::adit().as_os_str();
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: kib.unwrap_or(0).div_ceil(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            openvpn: lines.next().unwrap_or("unknown").to_owned(),
            openssl: lines
                .find_map(|line| line.strip_prefix("library versions: "))
                .unwrap_or("unknown")
                .into(),
            haproxy: says("haproxy", &["-v"]).lines().next().unwrap_or("unknown").to_owned(),
            sslh: says("sslh", &["-V"]).lines().next().unwrap_or("unknown").to_owned(),
            nft: says("nft", &["--version"]).trim().to_owned(),
            iptables: says("iptables", &["--version"]).trim().to_owned(),
            adit: says(adit, &["--version"]).trim().to_owned(),
            load_before: read("/proc/loadavg").split(' ').next().unwrap_or("unknown").to_owned(),
            time: jiff::Timestamp::now().to_string(),
        }
    }

    pub(crate) fn lines(&self) -> String {
        format!(
            "{}, {} cores, {} GiB, Linux {}, load before {}\n{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}\n",
            self.cpu,
            self.cores,
            self.memory_gib,
            self.kernel,
            self.load_before,
            self.adit,
            self.openvpn,
            self.openssl,
            self.haproxy,
            self.sslh,
            self.nft,
            self.iptables,
            self.time
        )
    }
}

fn says(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> String {
    // `openvpn --version` answers with exit code 1.
    Command::new(program)
        .args(arguments)
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default()
}
