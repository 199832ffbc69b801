//! `--http`: each record names the request that it hit, in both roles, or none where it is not certain. The
//! test's own process is the chosen one, so that both ends of a connection are looked at.

use std::{
    fs::{self, File},
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    process::{Command, Stdio},
    thread,
};

use rsttrace_tests::{
    Flow, Tracer, binary, expect,
    peers::{abort, read_head},
    require_root, require_tool,
};
use serde_json::{Value, json};

/// Looks at this process, and shows every end.
fn tracer(more: &[&str]) -> Tracer {
    let pid = std::process::id().to_string();
    Tracer::start(&[&["-a", "--http", "-p", &pid], more].concat())
}

/// A connection within this process.
struct Talk {
    client: TcpStream,
    server: TcpStream,
}

impl Talk {
    fn new() -> Self {
        Self::by(&TcpListener::bind("127.0.0.1:0").expect("a listener"))
    }

    fn by(listener: &TcpListener) -> Self {
        let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
        let (server, _) = listener.accept().expect("accept");
        client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).expect("socket options");
        Self { client, server }
    }

    /// The client sends, by one call, and the server reads it, by one call.
    fn ask(&mut self, bytes: impl AsRef<[u8]>) {
        self.client.write_all(bytes.as_ref()).expect("send");
        receive(&mut self.server, bytes.as_ref().len());
    }

    /// The server sends, by one call, and the client reads it, by one call.
    fn answer(&mut self, bytes: impl AsRef<[u8]>) {
        self.server.write_all(bytes.as_ref()).expect("send");
        receive(&mut self.client, bytes.as_ref().len());
    }

    /// The server aborts: the records of both ends, server's first.
    #[track_caller]
    fn aborted(self, tracer: &Tracer) -> [Value; 2] {
        let flow = Flow::of(&self.server);
        abort(self.server);
        drop(self.client);
        [tracer.teardown(flow), tracer.teardown(flow.peer())]
    }

    /// The same, where both ends must say the same of HTTP.
    #[track_caller]
    fn says(self, tracer: &Tracer, http: Value) -> [Value; 2] {
        let records = self.aborted(tracer);
        for record in &records {
            assert_eq!(record["http"], http, "{record}");
        }
        records
    }
}

fn receive(stream: &mut TcpStream, mut len: usize) {
    let mut buffer = vec![0; len];
    while len > 0 {
        len -= stream.read(&mut buffer).expect("receive");
    }
}

fn http(request: &str, status: Option<u16>, answer: &str) -> Value {
    json!({"request": request, "status": status, "answer": answer})
}

fn uncertain() -> Value {
    json!({"request": null, "status": null, "answer": "unknown"})
}

const GET: &str = "GET /a?secret=1 HTTP/1.1\r\nHost: x\r\n\r\n";
const LINE: &str = "GET /a HTTP/1.1";
const OK_5: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";

#[test]
fn both_ends_name_the_request_and_how_much_of_the_answer_there_was() {
    require_root!();
    let tracer = tracer(&[]);
    let mut talk = Talk::new();
    talk.ask(GET);
    let [server, client] = talk.says(&tracer, http(LINE, None, "none"));
    expect(&server, json!({"role": "server", "harm": "possible", "phase": "request-in-flight"}));
    expect(&client, json!({"role": "client", "cause": "server-abort-before-response", "harm": "possible"}));

    let mut talk = Talk::new();
    talk.ask(GET);
    talk.answer(format!("{OK_5}hell"));
    let [server, client] = talk.says(&tracer, http(LINE, Some(200), "partial"));
    expect(&server, json!({"harm": "possible", "phase": "mid-response"}));
    expect(&client, json!({"cause": "server-abort-mid-response", "phase": "mid-response", "harm": "possible"}));

    let mut talk = Talk::new();
    talk.ask(GET);
    talk.answer(OK_5);
    talk.answer("hello");
    let [server, client] = talk.says(&tracer, http(LINE, Some(200), "complete"));
    expect(&server, json!({"harm": "none", "phase": "after-response"}));
    expect(&client, json!({"cause": "peer-abort-after-response", "phase": "after-response", "harm": "none"}));
}

#[test]
fn a_fin_in_the_middle_of_an_answer_is_told() {
    require_root!();
    let tracer = tracer(&[]);
    let mut talk = Talk::new();
    talk.ask(GET);
    talk.answer(format!("{OK_5}hell"));
    let flow = Flow::of(&talk.server);
    drop(talk.server);
    assert_eq!(talk.client.read(&mut [0]).expect("a FIN"), 0);
    drop(talk.client);
    expect(
        &tracer.teardown(flow),
        json!({"end": "fin", "cause": "closed-before-answer", "harm": "possible", "http": {"answer": "partial"}}),
    );
    let client = tracer.teardown(flow.peer());
    expect(&client, json!({"end": "fin", "cause": "server-abort-mid-response", "harm": "possible", "http": {"answer": "partial"}}));
}

#[test]
fn of_several_requests_on_a_connection_the_last_is_named() {
    require_root!();
    let tracer = tracer(&[]);
    let mut talk = Talk::new();
    for i in 0..7 {
        talk.ask(format!("GET /{i} HTTP/1.1\r\nHost: x\r\n\r\n"));
        talk.answer(format!("{OK_5}hello"));
    }
    talk.ask("POST /last HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc");
    talk.answer("HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\n");
    talk.says(&tracer, http("POST /last HTTP/1.1", Some(503), "partial"));
}

#[test]
fn of_requests_in_one_segment_the_last_is_named() {
    require_root!();
    let tracer = tracer(&[]);
    let two = "GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n";
    let mut talk = Talk::new();
    talk.ask(two);
    talk.answer(format!("{OK_5}hello"));
    talk.says(&tracer, http("GET /2 HTTP/1.1", None, "none"));
    let mut talk = Talk::new();
    talk.ask(two);
    talk.answer(format!("{OK_5}hello{OK_5}hello"));
    talk.says(&tracer, http("GET /2 HTTP/1.1", Some(200), "complete"));
}

#[test]
fn a_head_may_come_in_pieces() {
    require_root!();
    let tracer = tracer(&[]);
    let mut talk = Talk::new();
    for piece in ["GE", "T /pie", "ces HTTP/1.1\r\nHo", "st: x\r\n", "\r\n"] {
        talk.ask(piece);
    }
    for piece in ["HTT", "P/1.1 40", "4 Not Found\r\nContent-Le", "ngth: 2\r\n\r\n", "n", "o"] {
        talk.answer(piece);
    }
    talk.ask("GET /next HTTP/1.1\r\n\r\n");
    talk.says(&tracer, http("GET /next HTTP/1.1", None, "none"));
}

#[test]
fn a_body_is_not_a_request() {
    require_root!();
    let tracer = tracer(&[]);
    let body = "GET /fake HTTP/1.1\r\nHost: x\r\n\r\n";
    let head = format!("POST /real HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());

    let mut at_once = Talk::new();
    let sent = at_once.client.write_vectored(&[IoSlice::new(head.as_bytes()), IoSlice::new(body.as_bytes())]).expect("writev");
    assert_eq!(sent, head.len() + body.len());
    let (mut first, mut second) = ([0; 10], vec![0; sent - 10]);
    let read = at_once.server.read_vectored(&mut [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)]).expect("readv");
    assert_eq!(read, sent);
    at_once.says(&tracer, http("POST /real HTTP/1.1", None, "none"));

    let mut apart = Talk::new();
    apart.ask(&head);
    apart.ask(body);
    apart.says(&tracer, http("POST /real HTTP/1.1", None, "none"));

    let mut invited = Talk::new();
    invited.ask(&head);
    invited.answer("HTTP/1.1 100 Continue\r\n\r\n");
    invited.ask(body);
    invited.says(&tracer, http("POST /real HTTP/1.1", None, "none"));

    let mut answered_early = Talk::new();
    answered_early.ask(&head);
    answered_early.answer("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n");
    answered_early.ask(body);
    answered_early.says(&tracer, uncertain());
}

#[test]
fn messages_are_seen_in_every_plain_call() {
    require_root!();
    let tracer = tracer(&[]);
    let mut talk = Talk::new();
    let head = b"GET /msg HTTP/1.1\r\n\r\n";
    message(&talk.client, head.len(), &mut head.clone(), false);
    message(&talk.server, head.len(), &mut [0; 64], true);
    let (client, server) = (owned(&talk.client), owned(&talk.server));
    let answer = format!("{OK_5}hello");
    File::from(server).write_all(answer.as_bytes()).expect("write");
    File::from(client).read_exact(&mut vec![0; answer.len()]).expect("read");
    talk.says(&tracer, http("GET /msg HTTP/1.1", Some(200), "complete"));

    // Looked at before, and then taken.
    talk = Talk::new();
    talk.client.write_all(GET.as_bytes()).expect("send");
    assert_eq!(talk.server.peek(&mut [0; 200]).expect("peek"), GET.len());
    receive(&mut talk.server, GET.len());
    talk.says(&tracer, http(LINE, None, "none"));
}

fn owned(stream: &TcpStream) -> OwnedFd {
    stream.try_clone().expect("dup").into()
}

/// `recvmsg` or `sendmsg` of `expected` bytes.
fn message(stream: &TcpStream, expected: usize, buffer: &mut [u8], receive: bool) {
    let len = if receive { buffer.len() } else { expected };
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: len };
    // SAFETY: zeroes are valid; the message leads to a buffer of ours.
    let n = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        match receive {
            true => libc::recvmsg(stream.as_raw_fd(), &raw mut message, 0),
            false => libc::sendmsg(stream.as_raw_fd(), &raw const message, 0),
        }
    };
    assert_eq!(n, expected as isize, "{}", io::Error::last_os_error());
}

#[test]
fn a_body_from_a_file_counts() {
    require_root!();
    let tracer = tracer(&[]);
    let path = std::env::temp_dir().join(format!("rsttrace-http-{}", std::process::id()));
    fs::write(&path, vec![b'f'; 5_000]).expect("a file");
    let file = File::open(&path).expect("a file");
    for (whole, n) in [("partial", 4_000), ("complete", 5_000)] {
        let mut talk = Talk::new();
        talk.ask(GET);
        talk.answer("HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n");
        let mut offset = 0;
        // SAFETY: descriptors and an offset of ours.
        let sent = unsafe { libc::sendfile(talk.server.as_raw_fd(), file.as_raw_fd(), &raw mut offset, n) };
        assert_eq!(sent, n as isize, "{}", io::Error::last_os_error());
        receive(&mut talk.client, n);
        talk.says(&tracer, http(LINE, Some(200), whole));
    }
    fs::remove_file(path).expect("remove");
}

#[test]
fn chunks_end_an_answer_and_a_head_request_has_none() {
    require_root!();
    let tracer = tracer(&[]);
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut talk = Talk::new();
    talk.ask(GET);
    [head, &chunk, &chunk].into_iter().for_each(|bytes| talk.answer(bytes));
    talk.says(&tracer, http(LINE, Some(200), "partial"));
    let mut talk = Talk::new();
    talk.ask(GET);
    [head, &chunk, &chunk, "0\r\n\r\n"].into_iter().for_each(|bytes| talk.answer(bytes));
    talk.says(&tracer, http(LINE, Some(200), "complete"));
    let mut talk = Talk::new();
    talk.ask("HEAD /h HTTP/1.1\r\n\r\n");
    talk.answer("HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n");
    talk.says(&tracer, http("HEAD /h HTTP/1.1", Some(200), "complete"));
}

#[test]
fn what_is_no_plain_http_1_is_not_named() {
    require_root!();
    let tracer = tracer(&[]);
    for bytes in
        ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\u{16}\u{3}\u{1}\0\u{1}GET / HTTP/1.1\r\n\r\n", "EHLO mail\r\n", "MAIL FROM:<a@b>\r\n"]
    {
        let mut talk = Talk::new();
        talk.ask(bytes);
        talk.says(&tracer, Value::Null);
    }
    // The next request has arrived, and nobody has read it.
    let mut talk = Talk::new();
    talk.ask(GET);
    talk.answer(format!("{OK_5}hello"));
    talk.client.write_all(b"GET /unread HTTP/1.1\r\n\r\n").expect("send");
    let [server, client] = talk.aborted(&tracer);
    assert_eq!(server["http"], uncertain(), "{server}");
    assert_eq!(client["http"], http("GET /unread HTTP/1.1", None, "none"), "{client}");
}

#[test]
fn a_request_that_is_read_after_the_reset_is_named() {
    require_root!();
    let tracer = tracer(&[]);
    let mut talk = Talk::new();
    let flow = Flow::of(&talk.server);
    talk.client.write_all(GET.as_bytes()).expect("send");
    abort(talk.client);
    receive(&mut talk.server, GET.len());
    assert_eq!(talk.server.read(&mut [0]).map_err(|error| error.raw_os_error()), Err(Some(libc::ECONNRESET)));
    drop(talk.server);
    assert_eq!(tracer.teardown(flow)["http"], http(LINE, None, "none"));
}

#[test]
fn queries_are_shown_on_request_only() {
    require_root!();
    let tracer = tracer(&["--http-query"]);
    let mut talk = Talk::new();
    talk.ask(GET);
    talk.says(&tracer, http("GET /a?secret=1 HTTP/1.1", None, "none"));
}

#[test]
fn hostile_bytes_are_harmless_on_a_terminal() {
    require_root!();
    let pid = std::process::id().to_string();
    // The other tests are of this process too.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let port = listener.local_addr().expect("an address").port().to_string();
    for json in [true, false] {
        let mut command = Command::new(binary());
        command.args(["--http", "-p", &pid, "-c", "1", "--end", "reset-received", "--port", &port]).args(json.then_some("--json"));
        let mut run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the tracer");
        let mut said = Vec::new();
        let mut stderr = run.stderr.take().expect("a pipe");
        while !said.ends_with(b"connections found\n") && !said.ends_with(b"connection found\n") {
            let mut byte = [0];
            stderr.read_exact(&mut byte).expect("the tracer is ready");
            said.push(byte[0]);
        }
        let mut talk = Talk::by(&listener);
        talk.ask(b"GET /\x1b[2J\xc2\x9b\xff\" HTTP/1.1\r\n\r\n");
        abort(talk.server);
        drop(talk.client);
        let output = run.wait_with_output().expect("output");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        let shown = if json { r#""GET /\u001b[2J\u009b"# } else { r#""GET /\u{1b}[2J\u{9b}"# };
        assert!(text.contains(shown), "{text}");
    }
}

#[test]
fn only_chosen_processes_are_looked_at() {
    require_root!();
    require_tool!("cat");
    // The chosen one has the connection too, and sees its end; the request was read by another.
    let mut talk = Talk::new();
    let flow = Flow::of(&talk.server);
    let mut cat = Command::new("cat").stdin(owned(&talk.server)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("cat");
    let tracer = Tracer::start(&["--http", "-p", &cat.id().to_string()]);
    let _ = talk.server.set_nonblocking(true);
    talk.client.write_all(b"hello").expect("send");
    drop(talk.server);
    abort(talk.client);
    cat.wait().expect("cat's end");
    assert_eq!(tracer.teardown(flow)["http"], Value::Null);
}

#[test]
fn processes_that_start_later_are_looked_at() {
    require_root!();
    require_tool!("python3");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("an address");
    let tracer = Tracer::start(&["--http", "-p", "python3"]);
    // By its name, after exec; a child of it; and a child of that, which another name does not hide.
    let program = format!(
        "import os, socket, time\n\
         def ask(path):\n    s = socket.create_connection(('127.0.0.1', {}))\n    s.sendall(f'GET /{{path}} HTTP/1.1\\r\\n\\r\\n'.encode())\n    \
         try:\n        s.recv(100)\n    except OSError:\n        pass\n\
         ask('exec')\n\
         if os.fork() == 0:\n    ask('fork')\n    os._exit(0)\n\
         os.wait()\n",
        address.port()
    );
    let mut python = Command::new("python3").args(["-c", &program]).spawn().expect("python3");
    for path in ["exec", "fork"] {
        let (mut server, _) = listener.accept().expect("accept");
        read_head(&mut server);
        let flow = Flow::of(&server).peer();
        abort(server);
        assert_eq!(tracer.teardown(flow)["http"]["request"], format!("GET /{path} HTTP/1.1"));
    }
    python.wait().expect("python3's end");
}

#[test]
fn a_command_is_looked_at_from_its_first_byte() {
    require_root!();
    require_tool!("python3");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let port = listener.local_addr().expect("an address").port();
    let program = format!(
        "import socket\ns = socket.create_connection(('127.0.0.1', {port}))\ns.sendall(b'GET /cmd HTTP/1.1\\r\\n\\r\\n')\n\
         try:\n    s.recv(1)\nexcept OSError:\n    pass\n"
    );
    let accepting = thread::spawn(move || {
        let (mut server, _) = listener.accept().expect("accept");
        read_head(&mut server);
        let flow = Flow::of(&server).peer();
        abort(server);
        flow
    });
    let tracer = Tracer::start(&["--http", "--", "python3", "-c", &program]);
    let flow = accepting.join().expect("a connection");
    assert_eq!(tracer.teardown(flow)["http"], http("GET /cmd HTTP/1.1", None, "none"));
}

/// With nginx, which a guest does not have.
#[cfg(feature = "logs")]
mod proxied {
    use std::{
        net::{Ipv4Addr, SocketAddr, SocketAddrV4},
        sync::Mutex,
    };

    use rsttrace_tests::{NetNs, nginx::Nginx, peers::connect_from};

    use super::*;

    /// A process that does not outlive the test, however that ends.
    struct Mortal(std::process::Child);

    impl Drop for Mortal {
        fn drop(&mut self) {
            let _ = self.0.kill().and_then(|()| self.0.wait());
        }
    }

    const PROXY: u16 = 8080;
    const REQUESTS: usize = 211;

    /// What the other side of nginx knows: the last request on each connection, by its other end.
    type Asked = Mutex<Vec<(SocketAddr, String)>>;

    fn note(asked: &Asked, who: SocketAddr, head: &str) {
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut asked = asked.lock().expect("no panic");
        asked.retain(|(other, _)| *other != who);
        asked.push((who, target));
    }

    /// Answers requests as their targets ask for.
    fn upstream(mut stream: TcpStream, asked: &Asked) {
        let nginx = stream.peer_addr().expect("an address");
        loop {
            let head = read_head(&mut stream);
            if !head.ends_with("\r\n\r\n") {
                return;
            }
            note(asked, nginx, &head);
            match head.split(['/', ' ']).nth(2).unwrap_or_default() {
                "before" => return abort(stream),
                "middle" => {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\npart");
                    return abort(stream);
                }
                "wait" => {
                    // Until nginx gives it up.
                    let _ = stream.read(&mut [0]);
                    return;
                }
                "big" => {
                    let body = vec![b'b'; 3 << 20];
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                    if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).is_err() {
                        return;
                    }
                }
                _ => {
                    if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").is_err() {
                        return;
                    }
                }
            }
        }
    }

    const FATES: [&str; 6] = ["fine", "before", "middle", "wait", "big", "fine"];

    /// One client: some requests on one connection, the last with a fate, then an abort.
    fn client(i: usize, asked: &Asked) {
        let from = SocketAddrV4::new(Ipv4Addr::new(127, 9, (i / 250) as u8, (i % 250 + 1) as u8), 0);
        let mut stream = connect_from(from, SocketAddrV4::new(Ipv4Addr::LOCALHOST, PROXY)).expect("connect");
        let own = stream.local_addr().expect("an address");
        let fate = FATES[i % FATES.len()];
        for (n, fate) in (0..i % 3).map(|n| (n, "fine")).chain([(9, fate)]) {
            let request = format!("POST /{fate}/{i}/{n}?private HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
            note(asked, own, &request);
            stream.write_all(request.as_bytes()).expect("send");
            match fate {
                "wait" => thread::sleep(std::time::Duration::from_millis(30)),
                "big" => drop(read_head(&mut stream)),
                _ => {
                    let head = read_head(&mut stream).to_ascii_lowercase();
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
                    let _ = stream.read_exact(&mut vec![0; length]);
                }
            }
        }
        abort(stream);
    }

    #[test]
    fn real_nginx_names_the_right_request_on_both_of_its_sides() {
        require_root!();
        require_tool!("nginx");
        let netns = NetNs::new();
        let tracer = Tracer::start(&["-a", "--http", "-p", "nginx", "--netns", &netns.inode().to_string()]);
        let (clients, upstreams) = (Asked::default(), Asked::default());
        netns.run_in(|| {
            let listener = TcpListener::bind("127.0.0.1:9000").expect("a listener");
            let config = format!(
                "upstream u {{ server 127.0.0.1:9000; keepalive 8; }}\n\
             server {{ listen {PROXY} reuseport; location / {{ proxy_pass http://u; proxy_http_version 1.1; \
             proxy_set_header Connection \"\"; proxy_next_upstream off; proxy_read_timeout 20s; }} }}"
            );
            let mut nginx = Nginx::start(Nginx::directory(), 2, &config);
            thread::scope(|scope| {
                scope.spawn(|| {
                    for stream in listener.incoming() {
                        let Ok(stream) = stream else { return };
                        let asked = &upstreams;
                        if stream.peer_addr().is_ok_and(|peer| peer.ip() == Ipv4Addr::new(127, 8, 8, 8)) {
                            return;
                        }
                        scope.spawn(move || upstream(stream, asked));
                    }
                });
                for lane in 0..4 {
                    let asked = &clients;
                    scope.spawn(move || (lane..REQUESTS).step_by(4).for_each(|i| client(i, asked)));
                }
                // Each client's end is told by nginx.
                let told = |record: &Value| record["record"] == "teardown" && record["local"]["port"] == PROXY;
                tracer.wait_n("nginx's clients", REQUESTS, told);
                nginx.stop();
                let _ = connect_from(SocketAddrV4::new(Ipv4Addr::new(127, 8, 8, 8), 0), SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9000));
            });
        });
        let run = tracer.stop();
        let (mut named, mut uncertain, mut none) = ([0, 0], 0, 0);
        for record in run.teardowns() {
            let Some(flow) = Flow::in_record(record) else { continue };
            let (side, asked, other) = match flow.local.port() == PROXY {
                true => (0, &clients, flow.remote),
                false => (1, &upstreams, flow.local),
            };
            let asked = asked.lock().expect("no panic");
            let Some((_, target)) = asked.iter().find(|(who, _)| *who == other) else { continue };
            let wanted = target.split('?').next().unwrap_or_default();
            match (&record["http"], record["http"]["request"].as_str()) {
                (Value::Null, _) => none += 1,
                (_, None) => uncertain += 1,
                (_, Some(line)) => {
                    named[side] += 1;
                    assert_eq!(line.split(' ').nth(1), Some(wanted), "{record}");
                }
            }
        }
        println!("named: {} clients', {} upstreams'; {uncertain} not certain, {none} without HTTP", named[0], named[1]);
        assert!(named[0] + 10 >= REQUESTS && named[1] > REQUESTS / 3, "{named:?}, {uncertain} not certain, {none} none");
        assert_eq!(run.summary["lost"]["total"], 0);
    }

    #[test]
    fn over_tls_nothing_is_named() {
        require_root!();
        require_tool!("openssl");
        let directory = Nginx::directory();
        let file = |name: &str| directory.join(name).display().to_string();
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=test",
                "-keyout",
                &file("key"),
                "-out",
                &file("cert"),
            ])
            .stderr(Stdio::null())
            .status();
        assert!(made.expect("openssl").success());
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port().to_string();
        let tracer = Tracer::start(&["-a", "--http", "-p", "openssl"]);
        let server = Command::new("openssl")
            .args(["s_server", "-quiet", "-www", "-accept", &format!("127.0.0.1:{port}"), "-cert", &file("cert"), "-key", &file("key")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map(Mortal)
            .expect("openssl");
        rsttrace_tests::wait_until("the server listens", || TcpStream::connect(format!("127.0.0.1:{port}")).is_ok());
        let mut client = Command::new("openssl")
            .args(["s_client", "-quiet", "-connect", &format!("127.0.0.1:{port}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map(Mortal)
            .expect("openssl");
        client.0.stdin.as_mut().expect("a pipe").write_all(b"GET /secret HTTP/1.0\r\n\r\n").expect("send");
        let mut page = String::new();
        let _ = client.0.stdout.as_mut().expect("a pipe").read_to_string(&mut page);
        assert!(page.contains("HTTP/1.0 200"), "{page}");
        drop(client);
        let exchanged = |record: &Value| record["record"] == "teardown" && record["bytes"]["received"].as_u64() > Some(200);
        for record in tracer.wait_n("both ends", 2, exchanged) {
            assert_eq!(record["http"], Value::Null, "{record}");
        }
        drop(server);
        fs::remove_dir_all(directory).expect("remove");
    }
}
