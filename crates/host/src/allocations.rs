//! Counting allocations, for tests of code that must make none.
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use rustix::thread::gettid;

/// The system's allocator, counting the allocations of one thread. Make it a test's `#[global_allocator]`.
#[derive(Debug)]
pub struct Counting {
    /// The watched thread's id; 0 for none.
    thread: AtomicI32,
    count: AtomicU64,
}

impl Counting {
    /// An allocator that watches nobody yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { thread: AtomicI32::new(0), count: AtomicU64::new(0) }
    }

    /// How often the calling thread allocates in `work`.
    pub fn during(&self, work: impl FnOnce()) -> u64 {
        self.watch(gettid().as_raw_nonzero().get());
        work();
        self.watched()
    }

    /// Counts from now on what the thread with this id allocates.
    pub fn watch(&self, thread: i32) {
        self.count.store(0, Ordering::Relaxed);
        self.thread.store(thread, Ordering::SeqCst);
    }

    /// How often the watched thread has allocated.
    #[must_use]
    pub fn watched(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    fn note(&self) {
        let watched = self.thread.load(Ordering::Relaxed);
        if watched != 0 && gettid().as_raw_nonzero().get() == watched {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Default for Counting {
    fn default() -> Self {
        Self::new()
    }
}

/// The id of this process's thread with this name, if there is one.
#[must_use]
pub fn thread_named(name: &str) -> Option<i32> {
    std::fs::read_dir("/proc/self/task").ok()?.map_while(Result::ok).find_map(|entry| {
        let comm = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        if comm.trim_end() == name { entry.file_name().to_str()?.parse().ok() } else { None }
    })
}

// SAFETY: everything is passed on to the system's allocator; counting touches two atomics and asks for the thread's
// id, neither of which allocates.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.note();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.note();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
