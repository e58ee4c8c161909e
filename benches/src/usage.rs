//! What a process and the machine have used, as the kernel counts it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use adit_testbed::Process;

/// Ticks of a second in `/proc`: the kernel's interface has 100 of them on every Linux that adit runs on.
const TICKS: u64 = 100;

/// Processor time of all threads of a process, of those that have ended too, in steps of 10 ms.
pub(crate) fn cpu(process: &Process) -> Duration {
    let text = read(format!("/proc/{}/stat", process.id()));
    // The name, in parentheses, may have spaces; utime and stime are the 12th and 13th field behind it.
    let fields: Vec<&str> = text.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    ticks(&fields[11..13])
}

/// Processor time of the threads that a process has now, to the nanosecond. Only where none of them ends meanwhile is a
/// difference of two of these what the process has used.
pub(crate) fn cpu_of_threads(process: &Process) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.id())).expect("the process runs");
    let times = tasks.map(|task| {
        let text = read(task.expect("a thread").path().join("schedstat"));
        let time = text.split_whitespace().next().expect("the time on a processor");
        Duration::from_nanos(time.parse().expect("a number"))
    });
    times.sum()
}

/// Processor time of the calling thread, to the nanosecond: with what the kernel takes in on its behalf.
pub(crate) fn cpu_of_this_thread() -> Duration {
    let text = read("/proc/thread-self/schedstat");
    let time = text.split_whitespace().next().expect("the time on a processor");
    Duration::from_nanos(time.parse().expect("a number"))
}

/// Time that the machine's processors have not been idle, all together, in steps of 10 ms.
///
/// The kernel may count the time in use by where its tick finds a processor, which misses what sleeps until a tick and
/// is over before the next. Idle time is always measured, so this is what that leaves.
pub(crate) fn busy() -> Duration {
    let uptime = read("/proc/uptime");
    let seconds: f64 = uptime.split(' ').next().and_then(|text| text.parse().ok()).expect("seconds");
    let text = read("/proc/stat");
    let fields: Vec<&str> = text.lines().next().expect("a line").split_whitespace().collect();
    // user nice system idle iowait: who waits for a disk is idle too.
    Duration::from_secs_f64(seconds * processors() as f64).saturating_sub(ticks(&fields[4..6]))
}

/// Processors of the machine: what [`busy`] counts.
pub(crate) fn processors() -> usize {
    // One line for each, and one for all.
    read("/proc/stat").lines().filter(|line| line.starts_with("cpu")).count() - 1
}

/// A control group: its processes, theirs, and what all of them have used, those too that have ended and that nobody
/// waited for. It ends them with its handle. One at a time.
pub(crate) struct Group(PathBuf);

impl Group {
    /// # Panics
    /// Without control groups of the second version, or the right to make one.
    pub(crate) fn new() -> Self {
        let mounts = read("/proc/mounts");
        let mount = mounts.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [_, at, "cgroup2", ..] => Some(at),
            _ => None,
        });
        let mount =
            mount.expect("control groups (cgroup2) are mounted: mount -t cgroup2 none /sys/fs/cgroup");
        let path = Path::new(mount).join(format!("adit-bench-{}", std::process::id()));
        std::fs::create_dir(&path)
            .unwrap_or_else(|error| panic!("{} cannot be made, as root: {error}", path.display()));
        Self(path)
    }

    /// Runs `program` in the group from its first instruction on.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec "$@""#]).arg(&self.0).arg(program);
        command
    }

    /// Processor time of its processes so far, to the microsecond.
    pub(crate) fn cpu(&self) -> Duration {
        let text = read(self.0.join("cpu.stat"));
        let time = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
        Duration::from_micros(time.expect("a number"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("cgroup.kill"), "1");
        // Those that are killed take a moment.
        let end = Instant::now() + Duration::from_secs(10);
        while let Err(error) = std::fs::remove_dir(&self.0) {
            if Instant::now() > end {
                eprintln!("{} is left behind: {error}", self.0.display());
                return;
            }
            std::thread::yield_now();
        }
    }
}

/// Open descriptors of a process.
pub(crate) fn descriptors(process: &Process) -> usize {
    count(format!("/proc/{}/fd", process.id()))
}

/// Threads of a process.
pub(crate) fn threads(process: &Process) -> usize {
    count(format!("/proc/{}/task", process.id()))
}

fn count(directory: impl AsRef<Path>) -> usize {
    std::fs::read_dir(directory).expect("the process runs").count()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn ticks(fields: &[&str]) -> Duration {
    let sum: u64 = fields.iter().map(|field| field.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(sum * 1000 / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_busy_while_a_thread_is() {
        let (cpu, before, start) = (cpu_of_this_thread(), busy(), Instant::now());
        while cpu_of_this_thread() - cpu < Duration::from_millis(200) {}
        let (busy, all) = (busy() - before, start.elapsed() * processors() as u32);
        // Both clocks behind it have steps.
        let step = Duration::from_millis(50);
        assert!(busy + step >= Duration::from_millis(200) && busy <= all + step, "{busy:?} of {all:?}");
    }
}
