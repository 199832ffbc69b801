//! Orderly ends are counted in the kernel, each once. Alone in its file: the count is the host's.

use rsttrace_tests::{NetNs, Tracer, require_root};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
};

const CONNECTIONS: u64 = 997;

/// So many connections, one after the other: an exchange, then a FIN from both. Addresses of
/// destroyed sockets are used again and again.
fn connect_and_part() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("an address");
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..CONNECTIONS {
                let (mut stream, _) = listener.accept().expect("accept");
                let mut request = [0; 20];
                stream.read_exact(&mut request).expect("a request");
                stream.write_all(&[b'x'; 19]).expect("an answer");
                assert_eq!(stream.read(&mut request).expect("a FIN"), 0);
            }
        });
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(address).expect("connect");
            stream.write_all(&[b'x'; 20]).expect("a request");
            stream.read_exact(&mut [0; 19]).expect("an answer");
        }
    });
}

#[test]
fn every_orderly_end_is_counted_once() {
    require_root!();
    let mut seen = Vec::new();
    // Somebody else's connections may end in the meantime.
    for _ in 0..3 {
        let netns = NetNs::new();
        let tracer = Tracer::start(&[]);
        netns.run_in(connect_and_part);
        let run = tracer.stop();
        let told = run.teardowns().filter(|record| record["netns"] == netns.inode()).count();
        assert_eq!(told, 0, "orderly ends are not told");
        let orderly = run.summary["orderly"].as_u64().expect("a number");
        if orderly == 2 * CONNECTIONS {
            return;
        }
        seen.push(format!("{orderly} ({} without room, skipped {})", run.summary["evicted"], run.summary["lost"]["skipped"]));
    }
    panic!("orderly ends that were counted: {seen:#?}; {} are ours", 2 * CONNECTIONS);
}
