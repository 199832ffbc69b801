//! Debian's nginx as a reverse proxy and file server, with and without TLS: its error log is the
//! witness for the records, line by line, and the records for the log.
//!
//! A line of the log has no descriptor and no port. To tell connections apart all the same, every
//! client connects from an address of its own, and every request is proxied to an address of its
//! own (all of 127.0.0.0/8 is this host), so that a line names exactly one socket: the client
//! `127.K.0.I` or the upstream `127.(100+K).0.I`, K for the kind of end and I for the instance.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use jiff::Timestamp;
use rsttrace_tests::{
    Flow, NetNs, Run, Tracer,
    nginx::{ErrorLine, Nginx, Side},
    peers::{Beacons, abort, connect_from, listen, read_head},
    require_root, require_tool, wait_until,
};
use serde_json::Value;

const PLAIN: u16 = 8080;
const TLS: u16 = 8443;
const UPSTREAM: u16 = 9000;
const CLOSED: u16 = 9;
/// More than nginx can have under way to a client that does not read.
const BIG: usize = 2 << 20;

const ECONNRESET: i32 = 104;
const ECONNREFUSED: i32 = 111;
const EPIPE: i32 = 32;

/// What the error log says of one kind of end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// One line with "(104: Connection reset by peer)" each.
    Reset,
    /// One line with "(111: Connection refused)" each.
    Refused,
    /// nginx takes the error and logs none.
    Nothing,
    /// One line with 104, or one with "(32: Broken pipe)", or none: where a RST meets sendfile() at
    /// work, the kernel's splice takes the socket's ECONNRESET for the chunk that failed, and the
    /// call returns the length that went before. The next write gives EPIPE, the next read end of
    /// file. nginx never heard of the reset; the record says so by `inferred`, or has the EPIPE.
    ResetOrSwallowed,
}

/// One way in which a connection of nginx ends.
struct Kind {
    name: &'static str,
    /// How often: prime, and one process of openssl each over TLS.
    count: u8,
    said: Said,
    side: Side,
    client: fn(&Stage, u8, u8),
}

/// The second octet of clients' addresses is 10 + the index here.
static KINDS: &[Kind] = &[
    Kind { name: "silent", count: 101, said: Said::Reset, side: Side::Client, client: client_silent },
    Kind { name: "half-head", count: 101, said: Said::Reset, side: Side::Client, client: client_half_head },
    Kind { name: "half-body", count: 101, said: Said::Reset, side: Side::Client, client: client_half_body },
    Kind { name: "waiting", count: 101, said: Said::Reset, side: Side::Client, client: client_waiting },
    Kind { name: "mid-response", count: 101, said: Said::Reset, side: Side::Client, client: client_mid_response },
    Kind { name: "download", count: 101, said: Said::ResetOrSwallowed, side: Side::Client, client: client_download },
    Kind { name: "ignored", count: 101, said: Said::Reset, side: Side::Client, client: client_ignored },
    Kind { name: "spooled", count: 101, said: Said::Reset, side: Side::Client, client: client_spooled },
    Kind { name: "idle", count: 101, said: Said::Reset, side: Side::Client, client: client_idle },
    Kind { name: "unbuffered-body", count: 31, said: Said::Reset, side: Side::Client, client: client_unbuffered_body },
    Kind { name: "upgraded", count: 31, said: Said::Reset, side: Side::Client, client: client_upgraded },
    Kind { name: "up-request", count: 101, said: Said::Reset, side: Side::Upstream, client: whole_exchange },
    Kind { name: "up-response", count: 101, said: Said::Reset, side: Side::Upstream, client: whole_exchange },
    Kind { name: "up-unbuffered", count: 101, said: Said::Reset, side: Side::Upstream, client: whole_exchange },
    Kind { name: "up-upgraded", count: 31, said: Said::Reset, side: Side::Upstream, client: whole_upgraded },
    Kind { name: "up-upload", count: 101, said: Said::ResetOrSwallowed, side: Side::Upstream, client: upload },
    Kind { name: "up-accept", count: 101, said: Said::Reset, side: Side::Upstream, client: whole_exchange },
    Kind { name: "up-refused", count: 101, said: Said::Refused, side: Side::Upstream, client: whole_exchange },
    Kind { name: "up-reused", count: 101, said: Said::Reset, side: Side::Upstream, client: two_exchanges },
    // ngx_http_upstream_keepalive_close_handler() looks with recv(MSG_PEEK) and closes, no words.
    Kind { name: "up-idle", count: 101, said: Said::Nothing, side: Side::Upstream, client: one_exchange_then_idle },
    Kind { name: "tls-silent", count: 31, said: Said::Reset, side: Side::Client, client: tls_silent },
    Kind { name: "tls-half-hello", count: 31, said: Said::Reset, side: Side::Client, client: tls_half_hello },
    Kind { name: "tls-download", count: 31, said: Said::Reset, side: Side::Client, client: tls_download },
    Kind { name: "tls-ignored", count: 31, said: Said::Reset, side: Side::Client, client: tls_ignored },
    Kind { name: "tls-idle", count: 31, said: Said::Reset, side: Side::Client, client: tls_idle },
    // ngx_ssl_handle_recv() takes a failed read() with OpenSSL's error queue empty for a clean
    // shutdown, and ngx_http_read_request_header() logs that end of file with error 0.
    Kind { name: "tls-half-head", count: 31, said: Said::Nothing, side: Side::Client, client: tls_half_head },
];

fn kind_of(name: &str) -> (u8, &'static Kind) {
    let at = KINDS.iter().position(|kind| kind.name == name).expect("a kind");
    (at as u8, &KINDS[at])
}

/// What scripted clients and upstreams share.
struct Stage {
    /// ("what", kind, instance)
    happened: Beacons<(&'static str, u8, u8)>,
    sockets: std::path::PathBuf,
}

impl Stage {
    fn connect(&self, kind: u8, i: u8, port: u16) -> TcpStream {
        let from = SocketAddrV4::new(client_address(kind, i), 0);
        connect_from(from, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).expect("connect to nginx")
    }

    fn light(&self, what: &'static str, kind: u8, i: u8) {
        self.happened.light((what, kind, i));
    }

    #[track_caller]
    fn wait(&self, what: &'static str, kind: u8, i: u8) {
        self.happened.wait(&(what, kind, i));
    }
}

fn client_address(kind: u8, i: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 10 + kind, 0, i)
}

fn request(kind: u8, i: u8, last: bool) -> String {
    let close = if last { "Connection: close\r\n" } else { "" };
    format!("GET /{}/{i} HTTP/1.1\r\nHost: test\r\n{close}\r\n", KINDS[usize::from(kind)].name)
}

/// Reads a response with Content-Length to its end.
fn read_response(stream: &mut TcpStream) -> String {
    let head = read_head(stream);
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a whole response");
    head
}

// ---- clients ----

fn client_silent(stage: &Stage, kind: u8, i: u8) {
    abort(stage.connect(kind, i, PLAIN));
}

fn client_half_head(stage: &Stage, kind: u8, i: u8) {
    let mut stream = stage.connect(kind, i, PLAIN);
    stream.write_all(b"GET /half HTTP/1.1\r\nHost: te").expect("send");
    abort(stream);
}

fn client_half_body(stage: &Stage, kind: u8, i: u8) {
    let mut stream = stage.connect(kind, i, PLAIN);
    let head = format!("POST /half-body/{i} HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\nhalf of it");
    stream.write_all(head.as_bytes()).expect("send");
    abort(stream);
}

fn client_waiting(stage: &Stage, kind: u8, i: u8) {
    let mut stream = stage.connect(kind, i, PLAIN);
    stream.write_all(request(kind, i, false).as_bytes()).expect("send");
    stage.wait("upstream has the request", kind, i);
    abort(stream);
}

fn client_mid_response(stage: &Stage, kind: u8, i: u8) {
    let mut stream = stage.connect(kind, i, PLAIN);
    stream.write_all(request(kind, i, false).as_bytes()).expect("send");
    stream.read_exact(&mut [0; 4096]).expect("the beginning of a response");
    abort(stream);
}

fn client_download(stage: &Stage, kind: u8, i: u8) {
    let mut stream = stage.connect(kind, i, PLAIN);
    stream.write_all(b"GET /files/big HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
    stream.read_exact(&mut [0; 4096]).expect("the beginning of a file");
    abort(stream);
}

/// nginx is told to go on without the client (`proxy_ignore_client_abort`), so that it notices
/// only when it writes.
fn client_ignored(stage: &Stage, kind: u8, i: u8) {
    let mut stream = stage.connect(kind, i, PLAIN);
    stream.write_all(request(kind, i, false).as_bytes()).expect("send");
    stage.wait("upstream has the request", kind, i);
    abort(stream);
    stage.light("client has aborted", kind, i);
}

/// The same with a client that reads slowly, so that the response waits in nginx's temporary file.
fn client_spooled(stage: &Stage, kind: u8, i: u8) {
    let mut stream = stage.connect(kind, i, PLAIN);
    stream.write_all(request(kind, i, false).as_bytes()).expect("send");
    stream.read_exact(&mut [0; 4096]).expect("the beginning of a response");
    stage.wait("upstream has sent half", kind, i);
    abort(stream);
    stage.light("client has aborted", kind, i);
}

/// With `proxy_request_buffering off` nginx reads the client's body while it sends to the upstream.
fn client_unbuffered_body(stage: &Stage, kind: u8, i: u8) {
    let mut stream = stage.connect(kind, i, PLAIN);
    let head = format!("POST /unbuffered-body/{i} HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\nhalf of it");
    stream.write_all(head.as_bytes()).expect("send");
    stage.wait("upstream has the request", kind, i);
    abort(stream);
}

/// A connection that nginx relays both ways, as for a WebSocket.
fn upgrade(stage: &Stage, kind: u8, i: u8) -> TcpStream {
    let mut stream = stage.connect(kind, i, PLAIN);
    let name = KINDS[usize::from(kind)].name;
    let head = format!("GET /{name}/{i} HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("send");
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 101"));
    stream
}

fn client_upgraded(stage: &Stage, kind: u8, i: u8) {
    abort(upgrade(stage, kind, i));
}

fn whole_upgraded(stage: &Stage, kind: u8, i: u8) {
    let mut stream = upgrade(stage, kind, i);
    stage.light("client has its answer", kind, i);
    stream.read_to_end(&mut Vec::new()).expect("nginx's end");
}

fn client_idle(stage: &Stage, kind: u8, i: u8) {
    let mut stream = stage.connect(kind, i, PLAIN);
    stream.write_all(b"GET /files/small HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
    assert!(read_response(&mut stream).starts_with("HTTP/1.1 200"));
    abort(stream);
}

/// Whatever nginx makes of the upstream's end, the client takes it and leaves in order.
fn whole_exchange(stage: &Stage, kind: u8, i: u8) {
    let mut stream = stage.connect(kind, i, PLAIN);
    stream.write_all(request(kind, i, true).as_bytes()).expect("send");
    stream.read_to_end(&mut Vec::new()).expect("nginx's answer");
}

fn upload(stage: &Stage, kind: u8, i: u8) {
    let mut stream = stage.connect(kind, i, PLAIN);
    let head = format!("POST /up-upload/{i} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", 4 << 20);
    stream.write_all(head.as_bytes()).expect("send");
    stream.write_all(&vec![b'x'; 4 << 20]).expect("send");
    stream.read_to_end(&mut Vec::new()).expect("nginx's answer");
}

/// The second request goes over the upstream connection of the first and meets its reset; nginx
/// then tries again over a new one.
fn two_exchanges(stage: &Stage, kind: u8, i: u8) {
    let mut stream = stage.connect(kind, i, PLAIN);
    stream.write_all(request(kind, i, false).as_bytes()).expect("send");
    assert!(read_response(&mut stream).starts_with("HTTP/1.1 200"));
    stream.write_all(request(kind, i, true).as_bytes()).expect("send");
    let head = read_response(&mut stream);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    stream.read_to_end(&mut Vec::new()).expect("nginx's end");
}

fn one_exchange_then_idle(stage: &Stage, kind: u8, i: u8) {
    whole_exchange(stage, kind, i);
    // nginx has put the upstream connection into its pool before it closed the client's.
    stage.light("client is done", kind, i);
}

fn tls_silent(stage: &Stage, kind: u8, i: u8) {
    abort(stage.connect(kind, i, TLS));
}

fn tls_half_hello(stage: &Stage, kind: u8, i: u8) {
    let mut stream = stage.connect(kind, i, TLS);
    // A record that announces 512 bytes of ClientHello, and six of them.
    stream.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).expect("send");
    abort(stream);
}

fn tls_download(stage: &Stage, kind: u8, i: u8) {
    let mut client = TlsClient::connect(stage, kind, i);
    client.send(b"GET /files/big HTTP/1.1\r\nHost: test\r\n\r\n");
    client.read_exact(64 << 10);
    client.abort();
}

fn tls_ignored(stage: &Stage, kind: u8, i: u8) {
    let mut client = TlsClient::connect(stage, kind, i);
    client.send(request(kind, i, false).as_bytes());
    stage.wait("upstream has the request", kind, i);
    client.abort();
    stage.light("client has aborted", kind, i);
}

fn tls_idle(stage: &Stage, kind: u8, i: u8) {
    let mut client = TlsClient::connect(stage, kind, i);
    client.whole_exchange();
    client.abort();
}

fn tls_half_head(stage: &Stage, kind: u8, i: u8) {
    let mut client = TlsClient::connect(stage, kind, i);
    client.whole_exchange();
    let before = client.sent();
    client.send(b"GET /half HTTP/1.1\r\nHost: te");
    wait_until("the half request is under way", || client.sent() > before);
    client.abort();
}

/// `openssl s_client`, talking to nginx through a TCP connection that the test can abort.
struct TlsClient {
    openssl: Child,
    tcp: TcpStream,
    local: UnixStream,
    sent: Arc<AtomicU64>,
    path: std::path::PathBuf,
}

impl TlsClient {
    fn connect(stage: &Stage, kind: u8, i: u8) -> Self {
        let path = stage.sockets.join(format!("{kind}-{i}"));
        let listener = UnixListener::bind(&path).expect("a socket for openssl");
        let openssl = Command::new("openssl")
            .args(["s_client", "-quiet", "-unix"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl");
        let (local, _) = listener.accept().expect("openssl's connection");
        let tcp = stage.connect(kind, i, TLS);
        let sent = Arc::new(AtomicU64::new(0));
        relay(clone(&local), clone_tcp(&tcp), Arc::clone(&sent));
        relay(clone_tcp(&tcp), clone(&local), Arc::default());
        Self { openssl, tcp, local, sent, path }
    }

    fn send(&mut self, bytes: &[u8]) {
        let stdin = self.openssl.stdin.as_mut().expect("a pipe");
        stdin.write_all(bytes).and_then(|()| stdin.flush()).expect("send through openssl");
    }

    fn read_exact(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.openssl.stdout.as_mut().expect("a pipe").read_exact(&mut bytes).expect("through openssl");
        bytes
    }

    fn whole_exchange(&mut self) {
        self.send(b"GET /files/small HTTP/1.1\r\nHost: test\r\n\r\n");
        let mut response = Vec::new();
        while !response.ends_with(SMALL) {
            response.extend(self.read_exact(1));
        }
    }

    /// Bytes of TLS that went to nginx.
    fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// Other threads hold descriptors of the connection too, and one of them may be in recv(), so
    /// connect(AF_UNSPEC) ends it: at once, and by RST.
    fn abort(mut self) {
        rsttrace_tests::peers::disconnect(&self.tcp).expect("disconnect");
        let _ = self.local.shutdown(std::net::Shutdown::Both);
        let _ = self.openssl.kill();
        let _ = self.openssl.wait();
        let _ = fs::remove_file(&self.path);
    }
}

fn clone(stream: &UnixStream) -> UnixStream {
    stream.try_clone().expect("dup")
}

fn clone_tcp(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("dup")
}

/// Carries bytes until either side ends.
fn relay(mut from: impl Read + Send + 'static, mut to: impl Write + Send + 'static, count: Arc<AtomicU64>) {
    thread::spawn(move || {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..n]).is_err() {
                break;
            }
            count.fetch_add(n as u64, Ordering::SeqCst);
        }
    });
}

// ---- upstreams ----

const SMALL: &[u8] = b"a small file, whole\n";

/// Serves every upstream address; what a connection meets depends on the path that it asks for.
fn upstreams(stage: &Arc<Stage>, listener: &TcpListener, stop: &AtomicBool) {
    loop {
        let (stream, _) = listener.accept().expect("accept");
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let stage = Arc::clone(stage);
        let IpAddr::V4(me) = stream.local_addr().expect("connected").ip() else { continue };
        let accept_only = kind_of("up-accept").0;
        if me.octets()[1] == 110 + accept_only {
            abort(stream);
            continue;
        }
        thread::spawn(move || upstream(&stage, stream));
    }
}

fn upstream(stage: &Stage, mut stream: TcpStream) {
    let mut exchanges = 0;
    loop {
        let head = read_head(&mut stream);
        let Some((kind, i)) = asked_for(&head) else { return };
        exchanges += 1;
        stage.light("upstream has the request", kind, i);
        let small = || format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", SMALL.len());
        let big = || format!("HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n");
        match KINDS[usize::from(kind)].name {
            // nginx hangs up when its client is gone.
            "waiting" | "unbuffered-body" => drop(stream.read_to_end(&mut Vec::new())),
            "upgraded" | "up-upgraded" => {
                let head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\n";
                stream.write_all(head).expect("send");
                if KINDS[usize::from(kind)].name == "up-upgraded" {
                    stage.wait("client has its answer", kind, i);
                    return abort(stream);
                }
                drop(stream.read(&mut [0]));
            }
            "mid-response" => {
                let body = vec![b'x'; BIG];
                let _ = stream.write_all(big().as_bytes()).and_then(|()| stream.write_all(&body));
            }
            "ignored" | "tls-ignored" => {
                stage.wait("client has aborted", kind, i);
                let _ = stream.write_all(small().as_bytes()).and_then(|()| stream.write_all(SMALL));
                drop(stream.read(&mut [0]));
            }
            "spooled" => {
                // Not the whole: after the last byte nginx would close the upstream connection and
                // mind its client's aborts again.
                let half = vec![b'x'; BIG / 2];
                let _ = stream.write_all(big().as_bytes()).and_then(|()| stream.write_all(&half));
                stage.light("upstream has sent half", kind, i);
                // The other half makes nginx write: it may have nothing to write now, and would
                // notice only after proxy_read_timeout.
                stage.wait("client has aborted", kind, i);
                let _ = stream.write_all(&half);
                drop(stream.read(&mut [0]));
            }
            "up-request" | "up-upload" => return abort(stream),
            "up-response" | "up-unbuffered" => {
                let _ = stream.write_all(big().as_bytes()).and_then(|()| stream.write_all(&[b'x'; 1000]));
                return abort(stream);
            }
            "up-reused" if exchanges == 2 => {
                stage.light("reused connection was reset", kind, i);
                return abort(stream);
            }
            "up-reused" => {
                let again = stage.happened.wait_up_to(std::time::Duration::ZERO, &("reused connection was reset", kind, i));
                let head = if again { small().replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n") } else { small() };
                stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(SMALL)).expect("send");
                if again {
                    return;
                }
                continue;
            }
            "up-idle" => {
                stream.write_all(small().as_bytes()).and_then(|()| stream.write_all(SMALL)).expect("send");
                stage.wait("client is done", kind, i);
                return abort(stream);
            }
            other => panic!("{other} does not go upstream"),
        }
        return;
    }
}

fn asked_for(head: &str) -> Option<(u8, u8)> {
    let mut path = head.split(' ').nth(1)?.split('/').skip(1);
    let kind = path.next()?;
    Some((kind_of(kind).0, path.next()?.parse().ok()?))
}

// ---- nginx ----

fn configuration(root: &Path) -> String {
    let certificate = root.join("cert.pem");
    let key = root.join("key.pem");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-subj", "/CN=test", "-days", "2", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .stderr(Stdio::null())
        .status();
    assert!(made.expect("openssl").success());
    fs::write(root.join("files/small"), SMALL).expect("a file");
    File::create(root.join("files/big")).and_then(|file| file.set_len(BIG as u64)).expect("a file");

    let mut pools = String::new();
    let mut locations = String::new();
    for (at, kind) in KINDS.iter().enumerate() {
        let (name, net) = (kind.name, 110 + at);
        let port = if name == "up-refused" { CLOSED } else { UPSTREAM };
        let pooled = matches!(name, "up-reused" | "up-idle");
        let to = if pooled { format!("{name}-$1") } else { format!("127.{net}.0.$1:{port}") };
        let extra = match name {
            "ignored" | "tls-ignored" => "proxy_ignore_client_abort on;",
            "spooled" => "proxy_ignore_client_abort on; proxy_buffers 4 4k; proxy_buffer_size 4k; proxy_busy_buffers_size 8k;",
            "mid-response" => "proxy_max_temp_file_size 0;",
            "up-unbuffered" => "proxy_buffering off;",
            "unbuffered-body" => "proxy_request_buffering off;",
            "upgraded" | "up-upgraded" => "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;",
            _ => "",
        };
        locations += &format!("location ~ ^/{name}/(\\d+)$ {{ proxy_pass http://{to}; {extra} }}\n");
        for i in (1..=kind.count).filter(|_| pooled) {
            pools += &format!("upstream {name}-{i} {{ server 127.{net}.0.{i}:{port}; keepalive 4; }}\n");
        }
    }
    format!(
        "sendfile on;\nkeepalive_timeout 75s;\nproxy_http_version 1.1;\nproxy_set_header Connection '';\n\
         client_max_body_size 16m;\nproxy_read_timeout 60s;\n{pools}\
         server {{\nlisten 127.0.0.1:{PLAIN} reuseport backlog=4096 sndbuf=64k;\n\
         listen 127.0.0.1:{TLS} ssl reuseport backlog=4096 sndbuf=64k;\n\
         ssl_certificate cert.pem;\nssl_certificate_key key.pem;\n\
         location /files/ {{ root .; }}\n{locations}}}\n"
    )
}

/// Runs every kind's clients, all kinds at once, and waits until nginx has let go of everything.
fn load(nginx: &Nginx, kinds: &[&Kind], count: impl Fn(&Kind) -> u8 + Sync) {
    let sockets = nginx.root().join("sockets");
    fs::create_dir_all(&sockets).expect("a directory");
    let stage = Arc::new(Stage { happened: Beacons::default(), sockets });
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, UPSTREAM);
    let listener = listen(any, 4096).expect("the upstreams' listener");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let upstreams = scope.spawn(|| upstreams(&stage, &listener, &stop));
        let clients: Vec<_> = kinds
            .iter()
            .map(|kind| {
                let (stage, count) = (&stage, &count);
                scope.spawn(move || {
                    for i in 1..=count(kind) {
                        (kind.client)(stage, kind_of(kind.name).0, i);
                    }
                })
            })
            .collect();
        let failed: Vec<_> = clients.into_iter().filter_map(|client| client.join().err()).collect();
        stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, UPSTREAM)));
        upstreams.join().expect("upstreams");
        assert!(failed.is_empty(), "{} clients failed", failed.len());
    });
    nginx.wait_idle();
}

/// What tells one socket of a worker from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Socket {
    worker: u32,
    side: Side,
    remote: IpAddr,
}

impl Socket {
    fn of_line(line: &ErrorLine) -> Self {
        Self { worker: line.pid(), side: line.side(), remote: line.remote() }
    }

    /// `None` where no worker of nginx took an error of these.
    fn of_record(record: &Value, workers: &[u32]) -> Option<Self> {
        let worker = record["observer"]["tgid"].as_u64()? as u32;
        errno_of(record)?;
        let flow = Flow::in_record(record)?;
        let ours = matches!(flow.local.port(), PLAIN | TLS);
        let side = if ours { Side::Client } else { Side::Upstream };
        workers.contains(&worker).then_some(Self { worker, side, remote: flow.remote.ip() })
    }

    fn kind(&self) -> &'static Kind {
        let IpAddr::V4(remote) = self.remote else { panic!("{self:?}") };
        let base = if self.side == Side::Client { 10 } else { 110 };
        &KINDS[usize::from(remote.octets()[1] - base)]
    }
}

fn errno_of(record: &Value) -> Option<i32> {
    match record["observer"]["errno"].as_str()? {
        "ECONNRESET" => Some(ECONNRESET),
        "ECONNREFUSED" => Some(ECONNREFUSED),
        "EPIPE" => Some(EPIPE),
        _ => None,
    }
}

/// Second of the observation: the end's time and the observer's delay.
fn observed_at(record: &Value) -> u64 {
    let time: Timestamp = record["time"].as_str().expect("time").parse().expect("a time");
    let delay = record["observer"]["delay_us"].as_u64().unwrap_or(0);
    (time + Duration::from_micros(delay)).as_second() as u64
}

/// What is wrong with a record as the story of a line about the same socket.
fn disagreement(line: &ErrorLine, record: &Value) -> Option<String> {
    let call = record["observer"]["syscall"].as_str().unwrap_or("none");
    if line.errno() != errno_of(record) {
        return Some("another errno".into());
    }
    // The words of an idle connection's end are the same with and without TLS.
    let tls = record["local"]["port"] == TLS && line.side() == Side::Client;
    if !line.calls().contains(&call) || !tls && matches!(call, "read" | "write") {
        return Some(format!("another call, {call}"));
    }
    // The log's clock is read once per turn of nginx's event loop.
    let apart = observed_at(record).abs_diff(line.second());
    if apart > 1 {
        return Some(format!("{apart} s apart"));
    }
    if record["owner"]["tgid"] != line.pid() {
        return Some("another owner".into());
    }
    // Whether sendfile() returned the ECONNRESET that it took is not seen, see `Said`.
    let unsure = call == "sendfile" && line.errno() == Some(ECONNRESET);
    let exact = record["observer"]["fd"].as_i64().is_some_and(|fd| fd > 2)
        && record["observer"]["tid"] == line.pid()
        && record["observer"]["comm"] == "nginx"
        && record["observer"]["inferred"] == unsure
        && record["seen"] == "yes";
    (!exact).then(|| "not exact".into())
}

/// Both ways: every line with 104, 111 or 32 has exactly one record that says the same, and every
/// record of an error that nginx took has exactly one line, or is of a kind without one.
fn assert_log_and_records_agree(lines: &[ErrorLine], run: &Run, workers: &[u32]) {
    let mut records: BTreeMap<Socket, Vec<&Value>> = BTreeMap::new();
    for record in run.teardowns() {
        if let Some(socket) = Socket::of_record(record, workers) {
            records.entry(socket).or_default().push(record);
        }
    }
    let mut problems = Vec::new();
    let mut matched = BTreeMap::new();
    for line in lines.iter().filter(|line| matches!(line.errno(), Some(ECONNRESET | ECONNREFUSED | EPIPE))) {
        let socket = Socket::of_line(line);
        match records.remove(&socket).as_deref() {
            Some([record]) => {
                if let Some(problem) = disagreement(line, record) {
                    problems.push(format!("{problem}:\n  {}\n  {record}", line.raw()));
                }
                matched.insert(socket, (line.errno(), record["observer"]["syscall"].as_str().unwrap_or("none")));
            }
            Some(several) => problems.push(format!("{} records of one line: {}", several.len(), line.raw())),
            None if matched.contains_key(&socket) => problems.push(format!("a second line: {}", line.raw())),
            None => problems.push(format!("no record: {}", line.raw())),
        }
    }
    for (socket, left) in &records {
        let allowed = match socket.kind().said {
            Said::Nothing => true,
            Said::ResetOrSwallowed => left[0]["observer"]["syscall"] == "sendfile" && left[0]["observer"]["inferred"] == true,
            Said::Reset | Said::Refused => false,
        };
        if left.len() > 1 || !allowed {
            problems.push(format!("{} records without a line, the first: {}", left.len(), left[0]));
        }
    }
    let total = problems.len();
    problems.truncate(20);
    assert!(problems.is_empty(), "{total} disagreements, the first:\n{}", problems.join("\n"));

    // The witness was heard: as many of each kind as were made, one by one.
    for kind in KINDS {
        let is_of_kind = |socket: &Socket| socket.kind().name == kind.name && socket.side == kind.side;
        let said = |errno| matched.iter().filter(|(s, (e, _))| is_of_kind(s) && *e == Some(errno)).count();
        let silent = records.keys().filter(|socket| is_of_kind(socket)).count();
        let (reset, refused, pipe) = (said(ECONNRESET), said(ECONNREFUSED), said(EPIPE));
        let count = usize::from(kind.count);
        let expected = match kind.said {
            // On a loaded machine the peer's FIN may come first: then it is EPIPE, in log and record alike.
            Said::Reset => (count.saturating_sub(pipe), 0, pipe.min(3), 0),
            Said::Refused => (0, count, 0, 0),
            Said::Nothing => (0, 0, 0, count),
            Said::ResetOrSwallowed => (count.saturating_sub(pipe + silent), 0, pipe, silent),
        };
        assert_eq!((reset, refused, pipe, silent), expected, "lines with 104, 111, 32 and none of {}", kind.name);
    }
    let mut calls: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, call) in matched.values() {
        *calls.entry(call).or_default() += 1;
    }
    println!("{} lines, their observers: {calls:?}", matched.len());
    for call in ["recvfrom", "readv", "writev", "sendfile", "getsockopt", "read", "write"] {
        assert!(calls.contains_key(call), "no line of {call}: {calls:?}");
    }
}

#[test]
fn every_reset_in_the_error_log_of_a_proxying_nginx_has_one_record_and_every_record_its_line() {
    require_root!();
    require_tool!("nginx");
    require_tool!("openssl");
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    netns.run_in(|| {
        let root = Nginx::directory();
        let config = configuration(&root);
        let mut nginx = Nginx::start(root, 2, &config);
        let workers = nginx.workers();
        let tracer = Tracer::start(&["--netns", &inode, "--join-timeout", "60s"]);
        load(&nginx, &KINDS.iter().collect::<Vec<_>>(), |kind| kind.count);
        nginx.stop();
        let run = tracer.stop();
        assert_eq!(run.summary["lost"]["total"], 0, "{}", run.summary);
        assert_log_and_records_agree(&nginx.error_log(), &run, &workers);
    });
}

/// Cookies of the teardowns that concern a process, and a check that nothing else was printed.
fn cookies(run: &Run, concerns: impl Fn(&Value) -> bool) -> BTreeSet<u64> {
    run.teardowns().filter(|record| concerns(record)).map(|record| record["cookie"].as_u64().expect("cookie")).collect()
}

#[test]
fn naming_nginx_or_its_master_selects_the_ends_of_its_workers_and_of_workers_that_start_later() {
    require_root!();
    require_tool!("nginx");
    require_tool!("openssl");
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    netns.run_in(|| {
        let root = Nginx::directory();
        let config = configuration(&root);
        let mut nginx = Nginx::start(root, 2, &config);
        let master = nginx.master().to_string();
        // How long nginx took decides whether a FIN end is shown: not counted here.
        let errors = ["--netns", &inode, "--join-timeout", "60s", "--end", "reset,timeout,error"];
        let all = Tracer::start(&errors);
        let by_name = Tracer::start(&[&errors[..], &["--pid", "nginx"]].concat());
        let by_pid = Tracer::start(&[&errors[..], &["-p", &master]].concat());
        let some: Vec<_> = ["silent", "waiting", "up-request", "up-refused"].map(|name| kind_of(name).1).to_vec();
        let old = nginx.workers();
        load(&nginx, &some, |_| 7);

        nginx.signal(libc::SIGHUP);
        wait_until("new workers have taken over", || {
            let now = nginx.workers();
            now.len() == 2 && now.iter().all(|worker| !old.contains(worker))
        });
        let new = nginx.workers();
        load(&nginx, &some, |_| 13);
        nginx.stop();

        let [all, by_name, by_pid] = [all, by_name, by_pid].map(Tracer::stop);
        let is_worker = |task: &Value| {
            let tgid = task["tgid"].as_u64().map(|tgid| tgid as u32);
            tgid.is_some_and(|tgid| old.contains(&tgid) || new.contains(&tgid))
        };
        let concerns = |record: &Value| ["owner", "observer", "closer"].iter().any(|part| is_worker(&record[part]));
        let expected = cookies(&all, concerns);
        assert_eq!(expected.len(), 4 * (7 + 13), "ends of nginx's connections");
        for (run, how) in [(by_name, "--pid nginx"), (by_pid, "-p MASTER")] {
            assert_eq!(cookies(&run, |_| true), expected, "{how}");
            assert!(run.teardowns().all(concerns), "{how}: a record of somebody else");
            let of_new = |record: &&Value| new.iter().any(|worker| record["owner"]["tgid"] == *worker);
            assert_eq!(run.teardowns().filter(of_new).count(), 4 * 13, "{how}: ends of the new workers");
        }
    });
}
