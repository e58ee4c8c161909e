//! What a process and the machine have used, as the kernel counts it.

use std::path::Path;
use std::time::Duration;

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
    cpu_of_threads_of(process.id())
}

/// The same of any process, by its number.
pub(crate) fn cpu_of_threads_of(process: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("the process runs");
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

/// Time that the machine's processors have not been idle, all together.
pub(crate) fn busy() -> Duration {
    let text = read("/proc/stat");
    let fields: Vec<&str> = text.lines().next().expect("a line").split_whitespace().collect();
    // user nice system idle iowait irq softirq steal; guest time is part of user.
    let busy = [1, 2, 3, 6, 7, 8].map(|at| fields[at]);
    ticks(&busy)
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
