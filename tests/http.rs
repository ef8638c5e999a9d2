//! Metrics and probes over real sockets.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use flopwatch::detector::outbox::Tally;
use flopwatch::http::health::{Health, Phase};
use flopwatch::http::{Server, serve};
use flopwatch::metrics;

const ANY_PORT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

struct Answer {
    status: u16,
    head: String,
    body: String,
}

fn start(health: &Arc<Health>) -> Server {
    let recorder = metrics::recorder().expect("a recorder can be built");
    let handle = recorder.handle();
    ::metrics::with_local_recorder(&recorder, || {
        metrics::describe();
        metrics::record(&Tally { read: 3, counted: 2, duplicate: 1, ..Tally::default() });
    });
    serve("http.listen", ANY_PORT, handle, Arc::clone(health)).expect("port 0 is always free")
}

fn request(address: SocketAddr, request: &str) -> Answer {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout can be set");
    stream.write_all(request.as_bytes()).expect("the request is sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the answer ends");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).expect("a status line");
    Answer {
        status: status.parse().expect("a status is a number"),
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    }
}

fn get(address: SocketAddr, path: &str) -> Answer {
    request(address, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))
}

#[test]
fn ready_says_why_not_until_the_directory_is_read_and_all_is_restored() {
    let health = Arc::new(Health::new(1));
    let server = start(&health);
    let address = server.address();
    let expect = |status: u16, body: &str| {
        let answer = get(address, "/healthz/ready");
        assert_eq!((answer.status, answer.body.as_str()), (status, body));
    };
    expect(503, "not ready: reading the account directory\n");
    health.directory_read();
    expect(503, "not ready: 1 of 1 workers wait for their partitions\n");
    health.worker(0, Phase::Restoring { remaining: 4 });
    expect(503, "not ready: 4 tasks are being restored\n");
    health.worker(0, Phase::Running);
    expect(200, "ready\n");
    health.stopping();
    expect(503, "not ready: stopping\n");
    server.stop();
}

#[test]
fn live_is_independent_of_readiness() {
    let health = Arc::new(Health::new(1));
    let server = start(&health);
    let answer = get(server.address(), "/healthz/live");
    assert_eq!((answer.status, answer.body.as_str()), (200, "live\n"));
    server.stop();
}

#[test]
fn metrics_are_in_the_text_format_of_prometheus() {
    let health = Arc::new(Health::new(0));
    let server = start(&health);
    let answer = get(server.address(), "/metrics");
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
    for line in [
        "# TYPE flopwatch_events_read_total counter",
        "flopwatch_events_read_total 3",
        "flopwatch_events_counted_total 2",
        "flopwatch_events_duplicate_total 1",
        "flopwatch_events_dead_lettered_total{reason=\"undecodable\"} 0",
    ] {
        assert!(answer.body.lines().any(|found| found == line), "{line} in\n{}", answer.body);
    }
    server.stop();
}

#[test]
fn the_index_lists_every_path_and_unknown_ones_are_not_found() {
    let health = Arc::new(Health::new(0));
    let server = start(&health);
    let index = get(server.address(), "/");
    assert_eq!(index.status, 200);
    for path in ["/metrics", "/healthz/live", "/healthz/ready"] {
        assert!(index.body.contains(path), "{path}");
        assert_ne!(get(server.address(), path).status, 404, "{path}");
    }
    assert_eq!(get(server.address(), "/nothing").status, 404);
    let post =
        "POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    assert_eq!(request(server.address(), post).status, 405);
    server.stop();
}

#[test]
fn a_taken_port_is_one_clear_line() {
    let holder = TcpListener::bind(ANY_PORT).expect("port 0 is always free");
    let taken = holder.local_addr().expect("a bound socket has an address");
    let recorder = metrics::recorder().expect("a recorder can be built");
    let error = serve("http.listen", taken, recorder.handle(), Arc::new(Health::new(0)))
        .expect_err("the port is taken");
    let text = error.to_string();
    assert_eq!(error.exit_code(), 2);
    assert!(text.starts_with(&format!("configuration: http.listen = \"{taken}\"")), "{text}");
    assert!(text.contains("another address or port") && !text.contains('\n'), "{text}");
}

#[test]
fn stopping_frees_the_port_although_a_client_never_ends_its_request() {
    let health = Arc::new(Health::new(0));
    let server = start(&health);
    let address = server.address();
    let mut slow = TcpStream::connect(address).expect("the server listens");
    slow.write_all(b"GET /metrics HTTP/1.1\r\n").expect("half a request is sent");
    // an answer to another client shows that the slow one has been accepted before it
    assert_eq!(get(address, "/healthz/live").status, 200);
    server.stop();
    let refused = TcpStream::connect(address);
    assert!(refused.is_err(), "the port still answers");
}
