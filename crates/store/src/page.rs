//! Lists that are read page by page.

use std::fmt;

use crate::fault::StoreFault;

/// The most rows one page holds, whatever is asked for.
pub const LARGEST_PAGE: u32 = 1_000;
/// The rows of a page when nothing is asked for.
pub const USUAL_PAGE: u32 = 100;
/// The longest place a cursor can name: two names and an id.
const LONGEST_CURSOR: usize = 192;

/// A place in a list, as given by the page before. Its text means nothing outside the list that gave it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Cursor(String);

impl Cursor {
    /// Takes the text of a cursor back, as it came in from outside. A text that no list gave is found out when it is
    /// used.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Names a place by the keys of the last row shown. Keys never contain a slash.
    pub(crate) fn at(keys: &[&str]) -> Self {
        Self(keys.join("/"))
    }

    fn keys<const N: usize>(&self) -> Result<[&str; N], StoreFault> {
        if self.0.len() > LONGEST_CURSOR {
            return Err(StoreFault::Cursor);
        }
        let keys: Vec<&str> = self.0.split('/').collect();
        keys.try_into().map_err(|_| StoreFault::Cursor)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which part of a list is wanted.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Where the page before ended; `None` for the first page.
    pub after: Option<Cursor>,
    /// How many rows at most; `None` for [`USUAL_PAGE`], and never more than [`LARGEST_PAGE`].
    pub limit: Option<u32>,
}

impl Page {
    /// The page of this size that follows the cursor.
    pub fn after(after: Option<Cursor>, limit: u32) -> Self {
        Self { after, limit: Some(limit) }
    }

    /// How many rows the page holds at most.
    pub(crate) fn limit(&self) -> usize {
        self.limit.unwrap_or(USUAL_PAGE).clamp(1, LARGEST_PAGE) as usize
    }

    /// The keys of the last row shown, all empty for the first page.
    pub(crate) fn text_keys<const N: usize>(&self) -> Result<[&str; N], StoreFault> {
        self.after.as_ref().map_or(Ok([""; N]), Cursor::keys)
    }

    /// The sequence number of the last row shown.
    pub(crate) fn seq_key(&self) -> Result<Option<i64>, StoreFault> {
        let Some(cursor) = &self.after else {
            return Ok(None);
        };
        let [seq] = cursor.keys()?;
        seq.parse().map(Some).map_err(|_| StoreFault::Cursor)
    }
}

/// One page of a list.
#[derive(Debug, Clone)]
pub struct Listed<T> {
    /// The rows, in the order of the list.
    pub items: Vec<T>,
    /// Where the next page begins; `None` after the last row.
    pub next: Option<Cursor>,
}

impl<T> Listed<T> {
    /// Makes a page of rows read with one row more than the limit: the extra row says that another page follows.
    pub(crate) fn new(mut items: Vec<T>, limit: usize, place: impl Fn(&T) -> Cursor) -> Self {
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(place);
        Self { items, next }
    }
}
