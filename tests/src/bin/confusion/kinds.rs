//! The kinds of end. Each function makes one, and says what it is by the calls that it has made.

use std::{thread, time::Duration};

use crate::lab::{
    CLOSED, DROPPED, Expected, LATE, Lab, Label, REJECTED,
    Side::{Client, Server},
    WAITED, label, read,
};

/// Longer than the longest goodbye of TLS, which is told from data by its length alone where its
/// reader may have had a part of it.
const NO_GOODBYE: u64 = 32;
/// A goodbye of TLS 1.3.
const GOODBYE: u64 = 24;
/// What certainly fits into a receive window, and needs no second segment to be sent.
const ONE_SEGMENT: u64 = 10_000;
const WINDOW: u64 = 50_000;
/// More than after which a connection idles.
const IDLE: Duration = Duration::from_millis(1_100);

pub struct Kind {
    pub name: &'static str,
    pub often: Often,
    pub make: fn(&mut Lab<'_>) -> Vec<Expected>,
}

#[derive(Clone, Copy)]
pub enum Often {
    /// As often as all of these.
    Share,
    /// It is slow: so many times.
    Times(usize),
    /// The same, and it ends by a timer.
    Timer(usize),
}

const fn share(name: &'static str, make: fn(&mut Lab<'_>) -> Vec<Expected>) -> Kind {
    Kind { name, often: Often::Share, make }
}

const fn times(n: usize, name: &'static str, make: fn(&mut Lab<'_>) -> Vec<Expected>) -> Kind {
    Kind { name, often: Often::Times(n), make }
}

const fn timer(n: usize, name: &'static str, make: fn(&mut Lab<'_>) -> Vec<Expected>) -> Kind {
    Kind { name, often: Often::Timer(n), make }
}

pub const KINDS: &[Kind] = &[
    share("client closes", client_closes),
    share("server closes", server_closes),
    share("server closes behind its answer", server_closes_behind_its_answer),
    share("half-close", half_close),
    share("half-close, answer unread", half_close_unread),
    share("upload", upload),
    share("upload unread", upload_unread),
    share("upload unread, reset", upload_unread_and_reset),
    share("goodbye", goodbye),
    share("goodbye unread", goodbye_unread),
    share("goodbye after the server's close", goodbye_after_servers_close),
    share("goodbye after the client's close", goodbye_after_clients_close),
    share("server closes at once, unanswered", server_closes_at_once),
    share("server closes after a while, unanswered", server_closes_after_a_while),
    times(23, "server exits, unanswered", server_exits),
    times(5, "server closes idle, unanswered", server_closes_idle),
    share("client gives up", client_gives_up),
    share("client gives up, request unread", client_gives_up_unread),
    share("client closes, answer unread", client_closes_answer_unread),
    share("client closes, answer unread, reset", client_closes_answer_unread_and_resets),
    share("client aborts after the answer", client_aborts_after_answer),
    share("client disconnects after the answer", client_disconnects_after_answer),
    share("client aborts before the answer", client_aborts_before_answer),
    share("client aborts, request unread", client_aborts_request_unread),
    share("client closes, answer partly read", client_closes_partly_read),
    share("client closes, answer under way", client_closes_under_way),
    share("server aborts before the answer", server_aborts_before_answer),
    share("server closes, request unread", server_closes_request_unread),
    share("server aborts in its answer, unread", server_aborts_in_answer_unread),
    share("server aborts in its answer, read", server_aborts_in_answer_read),
    share("connect probe", connect_probe),
    share("reset before accept", reset_before_accept),
    share("reset before accept, request read", reset_before_accept_read),
    share("reset before accept, request unread", reset_before_accept_unread),
    share("listener closed", listener_closed),
    share("listener closed, request unread", listener_closed_unread),
    share("written after the peer's close, at once", written_after_close_at_once),
    share("written after the peer's close, late", written_after_close_late),
    share("data after close", data_after_close),
    share("client aborts after its FIN", client_aborts_after_its_fin),
    share("server aborts after the client's FIN", server_aborts_after_clients_fin),
    share("client aborts after the server's FIN", client_aborts_after_servers_fin),
    share("linger2", linger2),
    share("refused", refused),
    share("gave up connecting", gave_up_connecting),
    times(11, "client killed after the answer", client_killed_after_answer),
    times(11, "server killed before the answer", server_killed_before_answer),
    times(5, "rejected by ICMP", rejected_by_icmp),
    times(5, "client aborts idle", client_aborts_idle),
    times(5, "server aborts idle", server_aborts_idle),
    timer(3, "linger2, left alone", linger2_left_alone),
    timer(3, "connect timeout", connect_timeout),
    timer(5, "user timeout", user_timeout),
    timer(3, "keep-alive timeout", keepalive_timeout),
];

// In order. An end by FIN has the phase of its first FIN, and nobody's data was left behind.

fn client_closes(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(1..=5);
    duo.lab.breathe();
    duo.close(Client);
    duo.lab.breathe();
    duo.read_fin(Server);
    duo.close(Server);
    duo.are(label("orderly", "none", "after-response"), label("orderly", "none", "after-response"))
}

fn server_closes(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(1..=5);
    duo.lab.breathe();
    duo.close(Server);
    duo.lab.breathe();
    duo.read_fin(Client);
    duo.close(Client);
    duo.are(label("orderly", "none", "after-response"), label("orderly", "none", "after-response"))
}

/// As HTTP/1.0 ends its answer. The server has finished it, though it is yet to be acknowledged.
fn server_closes_behind_its_answer(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    duo.request();
    duo.lab.breathe();
    let answer = duo.size();
    duo.send(Server, answer);
    duo.close(Server);
    duo.lab.breathe();
    duo.read(Client, answer);
    duo.read_fin(Client);
    duo.close(Client);
    duo.are(label("orderly", "none", "after-response"), label("orderly", "none", "after-response"))
}

/// The first FIN stands behind the request, which is answered after it.
fn half_close(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    duo.request();
    duo.lab.breathe();
    duo.shut(Client);
    duo.read_fin(Server);
    duo.lab.breathe();
    let answer = duo.size();
    duo.send(Server, answer);
    duo.lab.breathe();
    duo.close(Server);
    duo.read(Client, answer);
    duo.read_fin(Client);
    duo.close(Client);
    duo.are(label("orderly", "none", "closing"), label("orderly", "none", "closing"))
}

/// Both FINs have passed when the client closes, so that its kernel sends no RST.
fn half_close_unread(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    duo.request();
    duo.shut(Client);
    duo.read_fin(Server);
    duo.lab.breathe();
    let answer = duo.lab.rng.size(NO_GOODBYE, WINDOW);
    duo.send(Server, answer);
    duo.close(Server);
    duo.arrived(Client, answer);
    duo.ok(Client, "poll eof");
    duo.close(Client);
    duo.are(label("orderly-unread", "lost", "closing"), label("orderly", "lost", "closing"))
}

/// Fire and forget: a FIN right behind the last bytes waits for no answer.
fn upload(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    duo.lab.breathe();
    let bytes = duo.size();
    duo.send(Client, bytes);
    duo.close(Client);
    duo.lab.breathe();
    duo.read(Server, bytes);
    duo.read_fin(Server);
    duo.close(Server);
    duo.are(label("orderly", "none", "closing"), label("orderly", "none", "closing"))
}

/// The client ends in order, and its last bytes are lost all the same.
fn upload_unread(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    let bytes = duo.lab.rng.size(NO_GOODBYE, ONE_SEGMENT);
    duo.send(Client, bytes);
    duo.close_for_good(Client);
    duo.close(Server);
    duo.are(label("orderly", "lost", "closing"), label("close-with-unread-data", "lost", "after-remote-fin"))
}

/// The same, while the client still waits for the server's FIN.
fn upload_unread_and_reset(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    let bytes = duo.lab.rng.size(NO_GOODBYE, ONE_SEGMENT);
    duo.send(Client, bytes);
    duo.shut(Client);
    duo.ok(Server, "poll eof");
    duo.lab.breathe();
    duo.close(Server);
    duo.notice_or_not(Client);
    duo.are(label("reset-after-local-fin", "lost", "after-local-fin"), label("close-with-unread-data", "lost", "after-remote-fin"))
}

fn goodbye(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(1..=5);
    duo.lab.breathe();
    duo.send(Client, GOODBYE);
    duo.close(Client);
    duo.lab.breathe();
    duo.read(Server, GOODBYE);
    duo.read_fin(Server);
    duo.close(Server);
    duo.are(label("orderly", "none", "closing"), label("orderly", "none", "closing"))
}

/// Nobody misses a goodbye.
fn goodbye_unread(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(1..=5);
    duo.lab.breathe();
    duo.send(Client, GOODBYE);
    duo.close_for_good(Client);
    duo.lab.breathe();
    duo.close(Server);
    duo.are(label("orderly", "none", "closing"), label("close-with-unread-data", "none", "after-remote-fin"))
}

/// The server says goodbye and is gone; the client's answer to that meets its TIME_WAIT, of which
/// nobody knows how it came to be.
fn goodbye_after_servers_close(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(1..=5);
    duo.lab.breathe();
    duo.send(Server, GOODBYE);
    duo.close_for_good(Server);
    duo.read(Client, GOODBYE);
    duo.read_fin(Client);
    duo.lab.breathe();
    duo.send(Client, GOODBYE);
    duo.ok(Client, "poll error");
    duo.close(Client);
    let stray = duo.stray_at_server(label("time-wait", "possible", "closing"));
    let mut ends = duo.are(label("write-after-peer-close", "none", "after-remote-fin"), label("orderly", "none", "after-response"));
    ends.push(stray);
    ends
}

/// The same, and the client is gone.
fn goodbye_after_clients_close(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(1..=5);
    duo.lab.breathe();
    duo.send(Client, GOODBYE);
    duo.close_for_good(Client);
    duo.read(Server, GOODBYE);
    duo.read_fin(Server);
    duo.lab.breathe();
    duo.send(Server, GOODBYE);
    duo.ok(Server, "poll error");
    duo.close(Server);
    let stray = duo.stray_at_client(label("time-wait", "possible", "closing"));
    let mut ends = duo.are(label("orderly", "none", "closing"), label("write-after-peer-close", "none", "after-remote-fin"));
    ends.push(stray);
    ends
}

// A request without its answer, both ends by FIN.

/// The client waits for an answer. The server may have had a message that wants none, and who
/// answers a goodbye by closing takes a moment too: it is no party to what the client misses.
fn server_closes_at_once(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    let bytes = duo.lab.rng.size(1, WINDOW);
    duo.send(Client, bytes);
    duo.read(Server, bytes);
    duo.close(Server);
    duo.lab.breathe();
    duo.read_fin(Client);
    duo.close(Client);
    duo.are(label("closed-before-answer", "possible", "request-in-flight"), label("orderly", "none", "closing"))
}

fn server_closes_after_a_while(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    let bytes = duo.lab.rng.size(1, WINDOW);
    duo.send(Client, bytes);
    duo.read(Server, bytes);
    thread::sleep(WAITED);
    duo.close(Server);
    duo.lab.breathe();
    duo.read_fin(Client);
    duo.close(Client);
    duo.are(label("closed-before-answer", "possible", "request-in-flight"), label("orderly", "none", "closing"))
}

/// No goodbye is answered after a second.
fn server_closes_idle(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    duo.request();
    // Or the FIN would acknowledge it, and the client could not tell it from a goodbye.
    duo.acknowledged(Client);
    thread::sleep(IDLE);
    duo.close(Server);
    duo.lab.breathe();
    duo.read_fin(Client);
    duo.close(Client);
    let unanswered = label("closed-before-answer", "possible", "request-in-flight");
    duo.are(unanswered, unanswered)
}

/// An exit is no answer, however soon it comes.
fn server_exits(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut child = lab.server.fork("conf-exit");
    let (listener, to) = lab.listener();
    let mut client = lab.connect_to(to);
    let mut server = Lab::accept(&mut child, listener, &client);
    let bytes = lab.rng.size(1, WINDOW);
    lab.client_sends(&mut client, bytes);
    read(&mut child, &mut server, bytes);
    child.begin("exit");
    child.wait_gone();
    assert_eq!(lab.client_call(&client, "recv 1"), Ok("0".to_owned()), "the FIN of the process that exits");
    lab.client_call(&client, "close").expect("close");
    let unanswered = label("closed-before-answer", "possible", "request-in-flight");
    vec![client.is(unanswered.by("peer-application")), server.is(unanswered.by("local-application"))]
}

fn client_gives_up(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    duo.request();
    thread::sleep(WAITED);
    duo.close(Client);
    duo.lab.breathe();
    duo.read_fin(Server);
    duo.close(Server);
    duo.are(label("gave-up-waiting", "possible", "request-in-flight"), label("client-gave-up", "possible", "request-in-flight"))
}

/// The client has waited, so that its bytes are no goodbye however few.
fn client_gives_up_unread(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    let bytes = duo.lab.rng.size(1, WINDOW);
    duo.send(Client, bytes);
    duo.arrived(Server, bytes);
    thread::sleep(WAITED);
    duo.close_for_good(Client);
    duo.close(Server);
    duo.are(label("gave-up-waiting", "lost", "request-in-flight"), label("close-with-unread-data", "lost", "after-remote-fin"))
}

/// The server's answer, and its FIN behind it, arrive; the client closes without a look.
fn client_closes_answer_unread(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    duo.request();
    let answer = duo.lab.rng.size(NO_GOODBYE, WINDOW);
    duo.send(Server, answer);
    duo.close_for_good(Server);
    duo.close(Client);
    duo.are(label("close-with-unread-data", "lost", "after-remote-fin"), label("orderly", "lost", "after-response"))
}

/// The same, while the server still waits for the client's FIN.
fn client_closes_answer_unread_and_resets(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    duo.request();
    let answer = duo.lab.rng.size(NO_GOODBYE, WINDOW);
    duo.send(Server, answer);
    duo.shut(Server);
    duo.arrived(Client, answer);
    duo.ok(Client, "poll eof");
    duo.lab.breathe();
    duo.close(Client);
    duo.notice_or_not(Server);
    duo.are(label("close-with-unread-data", "lost", "after-remote-fin"), label("reset-after-local-fin", "lost", "after-local-fin"))
}

// The client aborts.

fn client_aborts_after_answer(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(1..=5);
    duo.lab.breathe();
    duo.abort(Client);
    duo.lab.breathe();
    duo.notice_or_not(Server);
    duo.are(label("linger-zero", "none", "after-response"), label("peer-abort-after-response", "none", "after-response"))
}

fn client_disconnects_after_answer(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(1..=5);
    duo.lab.breathe();
    duo.ok(Client, "disconnect");
    duo.notice_or_not(Server);
    duo.close(Client);
    duo.are(label("disconnect", "none", "after-response"), label("peer-abort-after-response", "none", "after-response"))
}

fn client_aborts_before_answer(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    duo.request();
    duo.lab.breathe();
    duo.abort(Client);
    duo.lab.breathe();
    duo.notice_or_not(Server);
    duo.are(label("linger-zero", "possible", "request-in-flight"), label("peer-abort-before-response", "possible", "request-in-flight"))
}

fn client_aborts_request_unread(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    let bytes = duo.lab.rng.size(1, WINDOW);
    duo.send(Client, bytes);
    duo.arrived(Server, bytes);
    duo.lab.breathe();
    duo.abort(Client);
    duo.lab.breathe();
    duo.close(Server);
    duo.are(label("linger-zero", "lost", "request-in-flight"), label("peer-abort-before-response", "lost", "request-in-flight"))
}

/// All of the answer has arrived, and the client reads but a part of it.
fn client_closes_partly_read(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    duo.request();
    duo.lab.breathe();
    let answer = duo.lab.rng.size(2, WINDOW);
    let part = duo.lab.rng.between(1, answer - 1);
    duo.send(Server, answer);
    duo.read(Client, part);
    duo.arrived(Client, answer - part);
    duo.lab.breathe();
    duo.close_unread(Client);
    duo.lab.breathe();
    duo.notice_or_not(Server);
    duo.are(label("close-with-unread-data", "lost", "mid-response"), label("peer-abort-mid-response", "lost", "mid-response"))
}

/// The answer is larger than all buffers.
fn client_closes_under_way(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    duo.request();
    duo.lab.breathe();
    duo.fill(Server);
    let part = duo.size();
    duo.read(Client, part);
    duo.lab.breathe();
    duo.close_unread(Client);
    duo.lab.breathe();
    duo.notice_or_not(Server);
    duo.are(label("close-with-unread-data", "lost", "mid-response"), label("peer-abort-mid-response", "lost", "mid-response"))
}

// The server aborts.

fn server_aborts_before_answer(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    duo.request();
    duo.lab.breathe();
    duo.abort(Server);
    duo.lab.breathe();
    duo.notice_or_not(Client);
    duo.are(label("server-abort-before-response", "possible", "request-in-flight"), label("linger-zero", "possible", "request-in-flight"))
}

fn server_closes_request_unread(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    let bytes = duo.lab.rng.size(1, WINDOW);
    duo.send(Client, bytes);
    duo.arrived(Server, bytes);
    duo.lab.breathe();
    duo.close_unread(Server);
    duo.lab.breathe();
    duo.notice_or_not(Client);
    duo.are(
        label("server-abort-before-response", "lost", "request-in-flight"),
        label("close-with-unread-data", "lost", "request-in-flight"),
    )
}

/// The client never reads what came of the answer.
fn server_aborts_in_answer_unread(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    duo.request();
    duo.lab.breathe();
    let part = duo.lab.rng.size(1, WINDOW);
    duo.send(Server, part);
    duo.arrived(Client, part);
    duo.lab.breathe();
    duo.abort(Server);
    duo.lab.breathe();
    duo.close(Client);
    duo.are(label("server-abort-mid-response", "lost", "mid-response"), label("linger-zero", "lost", "mid-response"))
}

/// The client has read what came of the answer; only the applications know that it is a part. The
/// server's TCP has delivered all that it was given.
fn server_aborts_in_answer_read(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    duo.request();
    duo.lab.breathe();
    let part = duo.size();
    duo.send(Server, part);
    duo.read(Client, part);
    duo.acknowledged(Server);
    duo.lab.breathe();
    duo.abort(Server);
    duo.lab.breathe();
    duo.notice_or_not(Client);
    duo.are(label("server-abort-mid-response", "possible", "mid-response"), label("linger-zero", "none", "after-response"))
}

// Before a word, or before accept().

fn connect_probe(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect();
    duo.lab.breathe();
    duo.abort(Client);
    duo.notice_or_not(Server);
    duo.are(label("linger-zero", "none", "idle"), label("connect-probe", "none", "idle"))
}

fn reset_before_accept(lab: &mut Lab<'_>) -> Vec<Expected> {
    let (listener, to) = lab.listener();
    let client = lab.connect_to(to);
    lab.breathe();
    lab.abort_client(&client);
    let server = Lab::accept(&mut lab.server, listener, &client);
    lab.close_server(&server);
    vec![client.is(label("linger-zero", "none", "idle")), server.is(label("reset-before-accept", "none", "accepting"))]
}

/// What had arrived before the RST can be read after it.
fn reset_before_accept_read(lab: &mut Lab<'_>) -> Vec<Expected> {
    let (listener, to) = lab.listener();
    let mut client = lab.connect_to(to);
    let bytes = lab.rng.size(1, ONE_SEGMENT);
    lab.client_sends(&mut client, bytes);
    lab.breathe();
    lab.abort_client(&client);
    let mut server = Lab::accept(&mut lab.server, listener, &client);
    lab.server_reads(&mut server, bytes);
    lab.close_server(&server);
    vec![client.is(label("linger-zero", "possible", "request-in-flight")), server.is(label("reset-before-accept", "possible", "accepting"))]
}

fn reset_before_accept_unread(lab: &mut Lab<'_>) -> Vec<Expected> {
    let (listener, to) = lab.listener();
    let mut client = lab.connect_to(to);
    let bytes = lab.rng.size(1, ONE_SEGMENT);
    lab.client_sends(&mut client, bytes);
    lab.breathe();
    lab.abort_client(&client);
    let server = Lab::accept(&mut lab.server, listener, &client);
    lab.breathe();
    lab.close_server(&server);
    vec![client.is(label("linger-zero", "lost", "request-in-flight")), server.is(label("reset-before-accept", "lost", "accepting"))]
}

fn listener_closed(lab: &mut Lab<'_>) -> Vec<Expected> {
    let (listener, to) = lab.listen();
    let client = lab.connect_to(to);
    lab.breathe();
    lab.server.ok(format!("close {listener}"));
    lab.client_call(&client, "close").expect("close");
    vec![client.is(label("connect-probe", "none", "idle")), client.peer_in_queue(label("listener-closed", "none", "accepting"))]
}

fn listener_closed_unread(lab: &mut Lab<'_>) -> Vec<Expected> {
    let (listener, to) = lab.listen();
    let mut client = lab.connect_to(to);
    let bytes = lab.rng.size(1, ONE_SEGMENT);
    lab.client_sends(&mut client, bytes);
    lab.breathe();
    lab.server.ok(format!("close {listener}"));
    lab.client_call(&client, "close").expect("close");
    vec![
        client.is(label("server-abort-before-response", "lost", "request-in-flight")),
        client.peer_in_queue(label("listener-closed", "lost", "accepting")),
    ]
}

// After a FIN.

/// The server is gone but for its TIME_WAIT, which answers. Its record waits for this one, and
/// knows that the bytes did not arrive.
fn written_after_close_at_once(lab: &mut Lab<'_>) -> Vec<Expected> {
    written_after_close(lab, Duration::ZERO, label("write-after-peer-close", "lost", "after-remote-fin").harm_alone("possible"))
}

/// The server's record is told when the bytes are sent: the client's half cannot know whether they
/// arrived.
fn written_after_close_late(lab: &mut Lab<'_>) -> Vec<Expected> {
    written_after_close(lab, LATE, label("write-after-peer-close", "possible", "after-remote-fin"))
}

fn written_after_close(lab: &mut Lab<'_>, after: Duration, client: Label) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(1..=5);
    duo.lab.breathe();
    duo.close_for_good(Server);
    if duo.lab.rng.flip() {
        duo.read_fin(Client);
    }
    thread::sleep(after);
    let bytes = duo.lab.rng.size(1, ONE_SEGMENT);
    duo.send(Client, bytes);
    duo.ok(Client, "poll error");
    duo.close(Client);
    let mut ends = duo.are(client, label("orderly", "none", "after-response"));
    ends.push(duo.stray_at_server(label("time-wait", "lost", "closing")));
    ends
}

/// With more than the time of TIME_WAIT to linger, the server's socket stays whole.
fn data_after_close(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(1..=5);
    duo.ok(Server, "set linger2 100");
    duo.lab.breathe();
    duo.close(Server);
    duo.ok(Client, "poll eof");
    duo.lab.breathe();
    let bytes = duo.lab.rng.size(1, ONE_SEGMENT);
    duo.send(Client, bytes);
    duo.ok(Client, "poll error");
    duo.close(Client);
    duo.are(label("write-after-peer-close", "lost", "after-remote-fin"), label("data-after-close", "lost", "after-local-fin"))
}

fn client_aborts_after_its_fin(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(1..=5);
    duo.lab.breathe();
    duo.shut(Client);
    duo.ok(Server, "poll eof");
    duo.lab.breathe();
    duo.abort(Client);
    duo.close(Server);
    duo.are(label("linger-zero", "none", "after-local-fin"), label("reset-while-closing", "none", "after-remote-fin"))
}

/// The request was read, and has no answer.
fn server_aborts_after_clients_fin(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    duo.request();
    duo.lab.breathe();
    duo.shut(Client);
    duo.read_fin(Server);
    duo.lab.breathe();
    duo.abort(Server);
    duo.notice_or_not(Client);
    duo.are(label("reset-after-local-fin", "possible", "after-local-fin"), label("linger-zero", "possible", "after-remote-fin"))
}

fn client_aborts_after_servers_fin(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(1..=5);
    duo.lab.breathe();
    duo.shut(Server);
    duo.read_fin(Client);
    duo.lab.breathe();
    duo.abort(Client);
    duo.notice_or_not(Server);
    duo.are(label("linger-zero", "none", "after-remote-fin"), label("reset-after-local-fin", "none", "after-local-fin"))
}

/// Once its FIN is acknowledged the client's kernel waits for no other, and resets.
fn linger2(lab: &mut Lab<'_>) -> Vec<Expected> {
    linger2_by(lab, true)
}

/// Left alone the server's kernel takes 40 ms to acknowledge it, and the end comes in a timer's
/// softirq, whatever that has interrupted.
fn linger2_left_alone(lab: &mut Lab<'_>) -> Vec<Expected> {
    linger2_by(lab, false)
}

fn linger2_by(lab: &mut Lab<'_>, at_once: bool) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(1..=5);
    duo.ok(Client, "set linger2 -1");
    duo.lab.breathe();
    duo.close(Client);
    duo.read_fin(Server);
    if at_once {
        duo.ok(Server, "set quickack 1");
    }
    duo.ok(Server, "poll error");
    duo.close(Server);
    duo.are(label("linger2-abort", "none", "after-local-fin"), label("reset-while-closing", "none", "after-remote-fin"))
}

// Connections that never stood.

fn refused(lab: &mut Lab<'_>) -> Vec<Expected> {
    let (client, to) = lab.attempt(CLOSED);
    assert_eq!(lab.client_call(&client, &format!("connect {to}")), Err("ECONNREFUSED".to_owned()));
    lab.client_call(&client, "close").expect("close");
    vec![client.is(label("refused", "none", "connecting")), client.stray_at_peer(label("closed-port", "none", "connecting"))]
}

fn gave_up_connecting(lab: &mut Lab<'_>) -> Vec<Expected> {
    let (client, to) = lab.attempt(DROPPED);
    lab.client_call(&client, "set nonblock 1").expect("O_NONBLOCK");
    assert_eq!(lab.client_call(&client, &format!("connect {to}")), Err("EINPROGRESS".to_owned()));
    lab.breathe();
    lab.client_call(&client, "close").expect("close");
    vec![client.is(label("gave-up-connecting", "none", "connecting"))]
}

fn rejected_by_icmp(lab: &mut Lab<'_>) -> Vec<Expected> {
    let (client, to) = lab.attempt(REJECTED);
    assert_eq!(lab.client_call(&client, &format!("connect {to}")), Err("ECONNREFUSED".to_owned()));
    lab.client_call(&client, "close").expect("close");
    vec![client.is(label("refused-by-icmp", "none", "connecting"))]
}

fn connect_timeout(lab: &mut Lab<'_>) -> Vec<Expected> {
    let (client, to) = lab.attempt(DROPPED);
    lab.client_call(&client, "set syncnt 1").expect("TCP_SYNCNT");
    assert_eq!(lab.client_call(&client, &format!("connect {to}")), Err("ETIMEDOUT".to_owned()));
    lab.client_call(&client, "close").expect("close");
    vec![client.is(label("connect-timeout", "none", "connecting"))]
}

// From outside, or by a timer.

fn client_killed_after_answer(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(1..=5);
    duo.kill_by_ss(Client);
    duo.read_error(Client, "ECONNABORTED");
    duo.notice_or_not(Server);
    duo.close(Client);
    duo.are(
        label("admin-kill", "none", "after-response").by("local-admin"),
        label("peer-abort-after-response", "none", "after-response").by("local-admin"),
    )
}

fn server_killed_before_answer(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    duo.request();
    duo.kill_by_ss(Server);
    duo.read_error(Server, "ECONNABORTED");
    duo.notice_or_not(Client);
    duo.close(Server);
    duo.are(
        label("server-abort-before-response", "possible", "request-in-flight").by("local-admin"),
        label("admin-kill", "possible", "request-in-flight").by("local-admin"),
    )
}

fn client_aborts_idle(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(1..=5);
    thread::sleep(IDLE);
    duo.abort(Client);
    duo.notice_or_not(Server);
    duo.are(label("linger-zero", "none", "idle"), label("peer-abort-idle", "none", "idle"))
}

fn server_aborts_idle(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(1..=5);
    thread::sleep(IDLE);
    duo.abort(Server);
    duo.notice_or_not(Client);
    duo.are(label("peer-abort-idle", "none", "idle"), label("linger-zero", "none", "idle"))
}

/// The answer does not arrive, and the server retransmits it in vain, which to it proves nothing; the
/// client aborts, unheard.
fn user_timeout(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(0..=4);
    duo.request();
    duo.cut();
    duo.ok(Server, "set user-timeout 300");
    duo.send(Server, 44);
    duo.read_error(Server, "ETIMEDOUT");
    duo.close(Server);
    thread::sleep(LATE);
    duo.abort(Client);
    duo.are(label("linger-zero", "possible", "request-in-flight"), label("user-timeout", "possible", "mid-response"))
}

/// The client's RST does not arrive either; the server aborts for itself.
fn keepalive_timeout(lab: &mut Lab<'_>) -> Vec<Expected> {
    let mut duo = lab.connect_and_exchange(1..=5);
    for option in ["keepidle", "keepintvl", "keepcnt", "keepalive"] {
        duo.ok(Client, &format!("set {option} 1"));
    }
    duo.cut();
    duo.read_error(Client, "ETIMEDOUT");
    duo.close(Client);
    thread::sleep(LATE);
    duo.abort(Server);
    duo.are(label("keepalive-timeout", "none", "idle"), label("linger-zero", "none", "idle"))
}
