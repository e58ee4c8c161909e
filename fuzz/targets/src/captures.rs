//! Capture files.

use adit_capture::Capture;
use adit_capture::flows::{MAX_FIRST, flows};

/// What is read lies within the file; beginnings are bounded; the counts add up.
pub(crate) fn captures(bytes: &[u8]) {
    let Ok(mut capture) = Capture::open(bytes) else {
        assert!(flows(bytes).is_err());
        return;
    };
    let mut captured = 0;
    let mut frames = 0;
    let mut failed = false;
    for frame in &mut capture {
        match frame {
            Ok(frame) => {
                frames += 1;
                captured += frame.bytes.len();
                let _ = frame.link.and_then(|link| link.ip(frame.bytes));
            }
            Err(_) => failed = true,
        }
    }
    assert!(captured <= bytes.len());
    assert!(capture.next().is_none(), "the end is the end");
    let Ok(found) = flows(bytes) else {
        assert!(failed);
        return;
    };
    assert_eq!((found.packets, found.truncated), (frames, capture.truncated()));
    let used: u64 = found.flows.iter().map(|flow| flow.packets).sum();
    assert_eq!(used + found.ignored + found.cut + found.left_out, frames);
    for flow in &found {
        assert!(flow.first.len() <= bytes.len().min(MAX_FIRST.max(flow.first_length)));
    }
}
