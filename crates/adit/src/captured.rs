//! Captures in files.

use std::path::Path;

use adit_capture::flows::{Flows, flows};

/// Larger captures are refused: they are read as a whole.
const MAX_FILE: u64 = 1 << 30;

/// The flows of a capture.
pub(crate) fn read(path: &Path) -> Result<Flows, String> {
    let fault = |error: &dyn std::fmt::Display| format!("cannot read {}: {error}", path.display());
    let length = std::fs::metadata(path).map_err(|error| fault(&error))?.len();
    if length > MAX_FILE {
        return Err(fault(&format!("{length} bytes are more than {MAX_FILE}; cut it with `tcpdump -r`")));
    }
    let bytes = std::fs::read(path).map_err(|error| fault(&error))?;
    flows(&bytes).map_err(|error| fault(&error))
}

/// What of the capture of this name was left out.
pub(crate) fn notes(name: &str, flows: &Flows) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(offset) = flows.truncated {
        notes.push(format!("{name} ends within the packet at offset {offset}, which was left out"));
    }
    if flows.cut > 0 {
        notes.push(format!("{} packets of {name} were cut by the capture and left out", flows.cut));
    }
    if flows.left_out > 0 {
        notes.push(format!("{} packets of {name} are of further flows and were left out", flows.left_out));
    }
    notes
}
