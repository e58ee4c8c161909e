//! Children and what they say.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use adit_host::process::terminate;

use crate::wait::eventually_some;

/// Lines of a log that a panic shows.
const SHOWN: usize = 60;

/// Lines that a child has written, collected as they come.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<(Instant, String)>,
    /// Sources that may still bring lines.
    open: usize,
}

impl Log {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collect(&self, source: impl Read + Send + 'static) {
        self.state().open += 1;
        let log = self.clone();
        std::thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            while source.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                log.state().lines.push((Instant::now(), text));
                log.0.changed.notify_all();
                line.clear();
            }
            log.state().open -= 1;
            log.0.changed.notify_all();
        });
    }

    /// How many lines there are: what comes later is found by [`since`](Self::since) and
    /// [`find_since`](Self::find_since).
    #[must_use]
    pub fn mark(&self) -> usize {
        self.state().lines.len()
    }

    /// All lines.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.since(0)
    }

    /// The lines after a mark.
    #[must_use]
    pub fn since(&self, mark: usize) -> Vec<String> {
        self.state().lines.iter().skip(mark).map(|(_, line)| line.clone()).collect()
    }

    /// The first line with `text` in it.
    #[must_use]
    pub fn find(&self, text: &str) -> Option<String> {
        self.find_since(0, text)
    }

    /// The first line after a mark with `text` in it.
    #[must_use]
    pub fn find_since(&self, mark: usize, text: &str) -> Option<String> {
        self.found(mark, text).map(|(_, line)| line)
    }

    /// How many lines have `text` in them.
    #[must_use]
    pub fn count(&self, text: &str) -> usize {
        self.state().lines.iter().filter(|(_, line)| line.contains(text)).count()
    }

    fn found(&self, mark: usize, text: &str) -> Option<(Instant, String)> {
        self.state().lines.iter().skip(mark).find(|(_, line)| line.contains(text)).cloned()
    }

    /// Waits for a line after a mark with `text` in it; when it came, and the line. `None` when it has not come
    /// within `limit` or cannot come any more.
    #[must_use]
    pub fn wait_since(&self, mark: usize, text: &str, limit: Duration) -> Option<(Instant, String)> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = self.found(mark, text) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let state = self.state();
            if left.is_zero() || state.open == 0 {
                drop(state);
                return self.found(mark, text);
            }
            // Lines may have come between the look and the lock, so not for long.
            let left = left.min(Duration::from_millis(20));
            drop(self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// The last lines, as a panic shows them.
    #[must_use]
    pub fn tail(&self) -> String {
        let lines = self.lines();
        lines[lines.len().saturating_sub(SHOWN)..].join("\n    ")
    }
}

/// A child that ends with its handle. When a test fails, its last words are shown.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// What it writes to standard output.
    pub out: Log,
    /// What it writes to standard error.
    pub err: Log,
}

impl Process {
    /// Starts it in the calling thread's namespace; see [`Host::spawn`](crate::Host::spawn).
    #[track_caller]
    pub(crate) fn spawn(name: &str, command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("{name}: cannot run {program}: {error}"),
        };
        let (out, err) = (Log::default(), Log::default());
        out.collect(child.stdout.take().expect("piped"));
        err.collect(child.stderr.take().expect("piped"));
        Self { name: name.to_owned(), child, out, err }
    }

    /// Its name in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its resident memory in bytes.
    ///
    /// # Panics
    /// When it is not running.
    #[must_use]
    #[track_caller]
    pub fn memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.id());
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        // A process that has ended but was not waited for has no such line.
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib =
            line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.parse::<u64>().ok());
        kib.unwrap_or_else(|| panic!("{} is not running", self.name)) * 1024
    }

    /// Waits for a line with `text` in it on standard output; the line.
    ///
    /// # Panics
    /// When it does not come within `limit`, or the process ends before.
    #[track_caller]
    pub fn wait_for(&self, text: &str, limit: Duration) -> String {
        self.wait_for_since(0, text, limit)
    }

    /// As [`wait_for`](Self::wait_for), for lines after a mark of `out`.
    ///
    /// # Panics
    /// When it does not come within `limit`, or the process ends before.
    #[track_caller]
    pub fn wait_for_since(&self, mark: usize, text: &str, limit: Duration) -> String {
        match self.out.wait_since(mark, text, limit) {
            Some((_, line)) => line,
            None => panic!("{}: {text:?} was not seen within {limit:?}", self.name),
        }
    }

    /// True when it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end within `limit`.
    #[track_caller]
    pub fn wait_for_end(&mut self, limit: Duration) -> ExitStatus {
        let status = eventually_some(&format!("the end of {}", self.name), limit, || {
            self.child.try_wait().unwrap_or_else(|error| panic!("{}: {error}", self.name))
        });
        // What it said last is still on its way through the pipes.
        for log in [&self.out, &self.err] {
            eventually_some("the end of its output", limit, || (log.state().open == 0).then_some(()));
        }
        status
    }

    /// Asks it to end (SIGTERM).
    ///
    /// # Panics
    /// When the system refuses.
    #[track_caller]
    pub fn terminate(&self) {
        terminate(&self.child).unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When the system refuses.
    #[track_caller]
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        if let Err(errno) = rustix::process::kill_process(pid, signal) {
            panic!("{}: {errno}", self.name);
        }
    }

    /// Ends it at once (SIGKILL).
    ///
    /// # Panics
    /// When the system refuses.
    #[track_caller]
    pub fn kill(&mut self) {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            for (log, what) in [(&self.out, "output"), (&self.err, "errors")] {
                if log.mark() > 0 {
                    eprintln!("--- {} of {}:\n    {}", what, self.name, log.tail());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Process {
        Process::spawn("sh", Command::new("sh").args(["-c", script]))
    }

    #[test]
    fn lines_are_waited_for_and_marks_hide_older_ones() {
        let mut process = shell("echo one; echo two; echo bad >&2; echo one more");
        assert_eq!(process.wait_for("two", Duration::from_secs(10)), "two");
        assert!(process.wait_for_end(Duration::from_secs(10)).success());
        assert_eq!(process.out.count("one"), 2);
        assert_eq!(process.out.find_since(1, "one").as_deref(), Some("one more"));
        assert_eq!(process.err.lines(), ["bad"]);
    }

    #[test]
    fn a_process_that_ends_early_is_not_waited_for() {
        let process = shell("echo nothing");
        let started = Instant::now();
        assert!(process.out.wait_since(0, "never", Duration::from_secs(60)).is_none());
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_process_ends_with_its_handle() {
        let process = shell("exec sleep 600");
        assert!(process.memory() > 0);
        let proc_entry = format!("/proc/{}", process.id());
        assert!(std::fs::exists(&proc_entry).unwrap());
        drop(process);
        assert!(!std::fs::exists(&proc_entry).unwrap());
    }
}
