//! A small web server with an access log, and a client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::Host;
use crate::listener::Listening;

const PATIENCE: Duration = Duration::from_secs(10);

/// A request that the server has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visit {
    /// Where it came from.
    pub from: SocketAddr,
    /// The path.
    pub path: String,
}

/// A web server. A path that is a number answers with as many bytes, any other with a short page.
#[derive(Debug)]
pub struct HttpServer {
    listening: Listening,
    visits: Arc<Mutex<Vec<Visit>>>,
}

impl HttpServer {
    /// Serves on an address of `host`, on port 80.
    ///
    /// # Panics
    /// When the port is taken.
    #[must_use]
    #[track_caller]
    pub fn start(host: &Host, address: IpAddr) -> Self {
        let visits = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&visits);
        let listening = Listening::start(host, SocketAddr::new(address, 80), move |stream| {
            let log = Arc::clone(&log);
            // A visitor that hangs up is its own affair.
            std::thread::spawn(move || serve(stream, &log));
        });
        Self { listening, visits }
    }

    /// All requests so far.
    #[must_use]
    pub fn visits(&self) -> Vec<Visit> {
        self.visits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listening.address()
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<Visit>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let from = stream.peer_addr()?;
    let mut request = String::new();
    BufReader::new(&stream).read_line(&mut request)?;
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    log.lock().unwrap_or_else(PoisonError::into_inner).push(Visit { from, path: path.clone() });
    let size: Option<usize> = path.trim_start_matches('/').parse().ok();
    let body = size.map_or_else(|| b"hello\n".to_vec(), |size| vec![b'x'; size]);
    stream.write_all(format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes())?;
    stream.write_all(&body)
}

/// Fetches a page from inside `host`; its body.
///
/// # Errors
/// What the network said, or that the answer was cut short.
pub fn http_get(host: &Host, server: SocketAddr, path: &str) -> std::io::Result<Vec<u8>> {
    host.run_in(|| {
        let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.ok_or_else(|| std::io::Error::other("the answer has no body"))?;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
        let body = answer.split_off(end + 4);
        if length == Some(body.len()) { Ok(body) } else { Err(std::io::Error::other("cut short")) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visitors_are_served_and_remembered() {
        let host = Host::new("http");
        let server = HttpServer::start(&host, [127, 0, 0, 1].into());
        assert_eq!(http_get(&host, server.address(), "/page").unwrap(), b"hello\n");
        assert_eq!(http_get(&host, server.address(), "/70000").unwrap().len(), 70_000);
        let paths: Vec<_> = server.visits().into_iter().map(|visit| visit.path).collect();
        assert_eq!(paths, ["/page", "/70000"]);
        assert_eq!(server.visits()[0].from.ip(), IpAddr::from([127, 0, 0, 1]));
    }
}
