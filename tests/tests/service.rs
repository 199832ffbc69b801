//! rsttrace under a service manager, which is played here: a datagram socket whose name is in NOTIFY_SOCKET.

use std::{
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    process::Command,
};

use rsttrace_tests::{DEADLINE, Tracer, binary, require_root};

/// With a name of its own.
fn manager(name: &str) -> (UnixDatagram, SocketAddr, String) {
    let name = format!("rsttrace-{name}-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let socket = UnixDatagram::bind_addr(&address).expect("a socket");
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    (socket, address, format!("@{name}"))
}

fn told(manager: &UnixDatagram) -> String {
    let mut message = [0; 4_096];
    let n = manager.recv(&mut message).expect("a message in time");
    String::from_utf8_lossy(&message[..n]).into_owned()
}

/// What is said on stderr goes into the same queue, so that the order is certain.
#[test]
fn a_service_is_ready_once_everything_is_attached() {
    require_root!();
    let (manager, address, name) = manager("order");
    let stderr = UnixDatagram::unbound().expect("a socket");
    stderr.connect_addr(&address).expect("the manager");
    let mut command = Command::new(binary());
    command.args(["--json", "-v", "--duration", "100ms"]).env("NOTIFY_SOCKET", name);
    let mut child = command.stdout(std::process::Stdio::null()).stderr(OwnedFd::from(stderr)).spawn().expect("rsttrace");
    let mut before = String::new();
    let ready = loop {
        let message = told(&manager);
        if message.starts_with("READY=1") {
            break message;
        }
        before += &message;
    };
    assert!(before.contains("rsttrace: ready: ") && before.contains("rsttrace: sandbox: "), "{before}");
    assert!(ready.contains("\nSTATUS=tracing all processes; ") && ready.lines().count() == 2, "{ready}");
    let stopping = loop {
        let message = told(&manager);
        if message.contains("=1") {
            break message;
        }
    };
    assert!(stopping.starts_with("STOPPING=1"), "{stopping}");
    assert!(child.wait().expect("its end").success());
}

#[test]
fn what_is_traced_is_no_service_and_no_manager_is_needed() {
    require_root!();
    let (manager, _, name) = manager("command");
    let mut command = Command::new(binary());
    command.args(["--json", "--", "sh", "-c", "echo \"its manager: ${NOTIFY_SOCKET-none}\""]).env("NOTIFY_SOCKET", name);
    let run = Tracer::start_command(command).finish();
    assert!(run.stderr.contains("its manager: none"), "{}", run.stderr);
    assert!(told(&manager).starts_with("READY=1\nSTATUS=tracing sh; "));

    let mut command = Command::new(binary());
    command.args(["--json", "--duration", "100ms"]).env("NOTIFY_SOCKET", "@rsttrace-nobody");
    let run = Tracer::start_command(command).finish();
    assert!(run.status.success() && run.stderr.contains("cannot tell the service manager anything: NOTIFY_SOCKET: "), "{}", run.stderr);
}
