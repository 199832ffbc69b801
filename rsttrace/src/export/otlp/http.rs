//! One connection to a collector. Names are looked up by a resolver of our own, because getaddrinfo() loads code of the
//! machine's libc, which a static binary cannot rely on, and would need a thread.

use std::{
    error::Error,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use hickory_resolver::{TokioResolver, config::ResolverConfig, net::runtime::TokioRuntimeProvider};
use http_body_util::{BodyExt as _, Collected, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Incoming},
    client::conn::http1::{SendRequest, handshake},
    header,
};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use super::settings::Settings;

/// No answer says more.
const MAX_ANSWER: usize = 64 << 10;
/// A collector that asks for more patience is asked again after this.
const MAX_PATIENCE: Duration = Duration::from_secs(300);
/// A connection that was idle for longer is not used again: collectors close theirs after a minute or so, and may be about to.
const MAX_IDLE: Duration = Duration::from_secs(30);

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// With what the collector says of it.
    Taken(T),
    /// Worth trying again, at the earliest after the time that the collector asks for.
    Later { why: String, after: Option<Duration> },
    /// Would be refused again.
    Never { why: String },
}

type Connection = SendRequest<Full<Bytes>>;

/// Talks to one collector, over a connection that is kept.
pub struct Client {
    settings: Settings,
    /// As it was when it could be read last.
    resolver: Option<TokioResolver>,
    /// And when it was last used.
    kept: Option<(Connection, Instant)>,
}

impl Client {
    pub fn new(settings: Settings) -> Self {
        Self { settings, resolver: None, kept: None }
    }

    /// Sends an encoded request to `/v1/{signal}`.
    pub async fn post<T: Message + Default>(&mut self, signal: &str, body: Bytes) -> Outcome<T> {
        let deadline = Instant::now() + self.settings.timeout;
        match timeout_at(deadline, self.exchange(signal, &body, deadline)).await {
            Ok(Ok((connection, response))) => {
                let outcome = outcome_of(response, deadline).await;
                self.kept = Some((connection, Instant::now()));
                outcome
            }
            Ok(Err(why)) => Outcome::Later { why, after: None },
            Err(_) => Outcome::Later { why: format!("no answer within {:?}", self.settings.timeout), after: None },
        }
    }

    /// Over the connection that is kept, or over a new one: also where the old one turns out to have been closed.
    async fn exchange(&mut self, signal: &str, body: &Bytes, deadline: Instant) -> Result<(Connection, Response<Incoming>), String> {
        // Taken out: a connection whose request is given up is of no use.
        let kept = self.kept.take().filter(|(connection, used)| !connection.is_closed() && used.elapsed() < MAX_IDLE);
        if let Some((mut connection, _)) = kept
            && let Ok(response) = self.ask(&mut connection, signal, body).await
        {
            return Ok((connection, response));
        }
        let mut connection = self.connect(deadline).await?;
        let response = self.ask(&mut connection, signal, body).await?;
        Ok((connection, response))
    }

    async fn ask(&self, connection: &mut Connection, signal: &str, body: &Bytes) -> Result<Response<Incoming>, String> {
        connection.ready().await.map_err(words)?;
        let mut request = Request::post(format!("{}/v1/{signal}", self.settings.path)).body(Full::new(body.clone())).map_err(words)?;
        let headers = request.headers_mut();
        headers.extend(self.settings.headers.clone());
        headers.insert(header::HOST, self.settings.authority.parse().map_err(words)?);
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/x-protobuf"));
        headers.insert(header::USER_AGENT, header::HeaderValue::from_static(concat!("rsttrace/", env!("CARGO_PKG_VERSION"))));
        if self.settings.compress {
            headers.insert(header::CONTENT_ENCODING, header::HeaderValue::from_static("gzip"));
        }
        connection.send_request(request).await.map_err(words)
    }

    /// To the first address that answers.
    async fn connect(&mut self, deadline: Instant) -> Result<Connection, String> {
        let addresses = self.addresses().await?;
        let mut problems = Vec::new();
        // One that says nothing leaves time for those after it, and for the request.
        for (address, shares) in addresses.iter().zip((2..=addresses.len() + 1).rev()) {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(shares).unwrap_or(u32::MAX);
            let problem = match timeout(share, self.open(*address)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(why)) => why,
                Err(_) => format!("no answer within {share:.1?}"),
            };
            problems.push(format!("{address}: {problem}"));
        }
        Err(if problems.is_empty() { no_address(&self.settings.host) } else { problems.join("; ") })
    }

    /// `/etc/hosts` and `/etc/resolv.conf` are read each time: a connection is kept, and both may have changed by the next.
    async fn addresses(&mut self) -> Result<Vec<SocketAddr>, String> {
        let Settings { host, port, .. } = &self.settings;
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, *port)]);
        }
        let resolver = match (TokioResolver::builder_tokio(), self.resolver.take()) {
            (Ok(read), _) => read.build().map_err(words)?,
            (Err(_), Some(known)) => known,
            // There are the names of /etc/hosts.
            (Err(_), None) => {
                TokioResolver::builder_with_config(ResolverConfig::default(), TokioRuntimeProvider::default()).build().map_err(words)?
            }
        };
        let found = self.resolver.insert(resolver).lookup_ip(host.as_str()).await;
        let found = found.map_err(|error| if error.is_no_records_found() { no_address(host) } else { words(error) })?;
        Ok(found.iter().map(|address| SocketAddr::new(address, *port)).collect())
    }

    async fn open(&self, address: SocketAddr) -> Result<Connection, String> {
        let stream = TcpStream::connect(address).await.map_err(words)?;
        match &self.settings.tls {
            None => talk(stream).await,
            Some(tls) => {
                let name = ServerName::try_from(self.settings.host.clone()).map_err(words)?;
                let tls = TlsConnector::from(Arc::clone(tls)).connect(name, stream);
                talk(tls.await.map_err(|error| format!("TLS: {error}"))?).await
            }
        }
    }
}

async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Connection, String> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(words)?;
    // Ends with the connection, or when the sender is dropped; what went wrong the sender is told.
    tokio::spawn(async { drop(connection.await) });
    Ok(sender)
}

/// Which answers are worth another try is OTLP's specification's. The status decides, whatever comes after it.
async fn outcome_of<T, B>(response: Response<B>, deadline: Instant) -> Outcome<T>
where
    T: Message + Default,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>,
{
    let status = response.status();
    let why = format!("HTTP status {}", status.as_u16());
    match status {
        status if status.is_success() => {
            let body = timeout_at(deadline, Limited::new(response.into_body(), MAX_ANSWER).collect()).await;
            // It has been taken, also where nobody can read how.
            let body = body.ok().and_then(Result::ok).map(Collected::to_bytes).unwrap_or_default();
            T::decode(body).map_or_else(|_| Outcome::Never { why: why + ", with an answer that is not OTLP" }, Outcome::Taken)
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            let asked = response.headers().get(header::RETRY_AFTER);
            Outcome::Later { why, after: asked.and_then(|value| patience(value.to_str().ok()?, Timestamp::now())) }
        }
        _ => Outcome::Never { why },
    }
}

/// `Retry-After`: seconds, or a date.
fn patience(value: &str, now: Timestamp) -> Option<Duration> {
    let asked = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
            Duration::try_from(date.duration_since(now)).unwrap_or_default()
        }
    };
    Some(asked.min(MAX_PATIENCE))
}

fn no_address(name: &str) -> String {
    format!("{name} has no address")
}

/// With what lies beneath: "connection error" alone helps nobody.
fn words(error: impl Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        words += &format!(": {error}");
        source = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_may_ask_for_patience_in_two_ways() {
        let now: Timestamp = "1994-11-06T08:49:30Z".parse().unwrap();
        assert_eq!(patience("7", now), Some(Duration::from_secs(7)));
        assert_eq!(patience("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(7)));
        assert_eq!(patience("Sun, 06 Nov 1994 08:49:07 GMT", now), Some(Duration::ZERO));
        assert_eq!(patience("18446744073709551615", now), Some(MAX_PATIENCE));
        assert_eq!(patience("soon", now), None);
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_named() {
        // Nobody is asked for a name of this kind.
        let settings = Settings::new("http://collector.invalid:4318", &[], |_| None).unwrap();
        assert_eq!(Client::new(settings).addresses().await, Err("collector.invalid has no address".to_owned()));
    }

    #[tokio::test]
    async fn the_status_decides_whatever_comes_with_it() {
        use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceResponse};
        let deadline = Instant::now() + MAX_PATIENCE;
        let answer = async |status: u16, body: Vec<u8>| {
            let response = Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap();
            outcome_of::<ExportLogsServiceResponse, _>(response, deadline).await
        };
        let nothing = ExportLogsServiceResponse::default();
        let partial = ExportLogsPartialSuccess { rejected_log_records: 3, error_message: String::new() };
        let said = ExportLogsServiceResponse { partial_success: Some(partial) };
        assert_eq!(answer(200, Vec::new()).await, Outcome::Taken(nothing.clone()));
        assert_eq!(answer(200, said.encode_to_vec()).await, Outcome::Taken(said));
        let large = vec![b'x'; MAX_ANSWER + 1];
        assert_eq!(answer(200, large.clone()).await, Outcome::Taken(nothing), "sent again, it would be there twice");
        assert_eq!(answer(404, large.clone()).await, Outcome::Never { why: "HTTP status 404".to_owned() });
        assert_eq!(answer(503, large).await, Outcome::Later { why: "HTTP status 503".to_owned(), after: None });
        let page = answer(200, b"<!doctype html><title>Welcome</title>".to_vec()).await;
        assert_eq!(page, Outcome::Never { why: "HTTP status 200, with an answer that is not OTLP".to_owned() });
    }
}
