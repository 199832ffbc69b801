//! Where to send, and with what: the flags, and the environment variables that OpenTelemetry's own exporters obey.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use hyper::{
    HeaderMap, Uri,
    header::{HeaderName, HeaderValue},
};
use percent_encoding::percent_decode_str;
use rustls_native_certs::load_native_certs;
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject as _},
};

/// What a request may take in all, as OpenTelemetry has it.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often metrics are sent, as OpenTelemetry has it.
const INTERVAL: Duration = Duration::from_secs(60);

/// A collector, and how to talk to it.
#[derive(Clone, Debug)]
pub struct Settings {
    pub host: String,
    pub port: u16,
    /// What stands before `/v1/logs`, without a slash at its end.
    pub path: String,
    /// `HOST:PORT` as the URL has it.
    pub authority: String,
    /// Marked as sensitive: their values are never printed.
    pub headers: HeaderMap,
    /// Whom to trust; `None` is plain HTTP.
    pub tls: Option<Arc<ClientConfig>>,
    pub compress: bool,
    /// Of one request.
    pub timeout: Duration,
    /// Between metrics.
    pub interval: Duration,
    /// More attributes of the resource: names and values.
    pub resource: Vec<(String, String)>,
}

impl Settings {
    /// Of `--otlp` and `--otlp-header`; `env` looks up a variable.
    ///
    /// # Errors
    /// What cannot be used, and why; without the value of any header.
    pub fn new(url: &str, headers: &[String], env: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let expected = "--otlp: expected http://HOST:PORT or https://HOST:PORT, where a collector takes OTLP over HTTP (mostly port 4318; gRPC, port 4317, is not spoken)";
        let uri: Uri = url.parse().map_err(|_| expected.to_owned())?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(expected.to_owned()) };
        if authority.as_str().contains('@') {
            return Err("--otlp: no user and password in the URL: everybody sees them in `ps`; use OTEL_EXPORTER_OTLP_HEADERS".to_owned());
        }
        if uri.query().is_some() || authority.host().is_empty() {
            return Err(expected.to_owned());
        }
        let (port, tls) = match scheme {
            "http" => (80, None),
            "https" => (443, Some(tls(env("OTEL_EXPORTER_OTLP_CERTIFICATE").map(PathBuf::from))?)),
            _ => return Err(expected.to_owned()),
        };
        let compress = match env("OTEL_EXPORTER_OTLP_COMPRESSION").as_deref() {
            None | Some("gzip") => true,
            Some("none") => false,
            Some(_) => return Err("OTEL_EXPORTER_OTLP_COMPRESSION: expected gzip or none".to_owned()),
        };
        let mut all = HeaderMap::new();
        for pair in env("OTEL_EXPORTER_OTLP_HEADERS").iter().flat_map(|list| list.split(',')).filter(|pair| !pair.trim().is_empty()) {
            let decoded = percent_decode_str(pair).decode_utf8_lossy().into_owned();
            add_header(&mut all, &decoded).map_err(|why| format!("OTEL_EXPORTER_OTLP_HEADERS: {why}"))?;
        }
        for pair in headers {
            add_header(&mut all, pair).map_err(|why| format!("--otlp-header: {why}"))?;
        }
        Ok(Self {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(port),
            path: uri.path().trim_end_matches('/').to_owned(),
            authority: authority.to_string(),
            headers: all,
            tls,
            compress,
            timeout: milliseconds("OTEL_EXPORTER_OTLP_TIMEOUT", env("OTEL_EXPORTER_OTLP_TIMEOUT"))?.unwrap_or(TIMEOUT),
            interval: milliseconds("OTEL_METRIC_EXPORT_INTERVAL", env("OTEL_METRIC_EXPORT_INTERVAL"))?.unwrap_or(INTERVAL),
            resource: resource(env("OTEL_RESOURCE_ATTRIBUTES"), env("OTEL_SERVICE_NAME"))?,
        })
    }
}

impl Settings {
    /// Those that are connected to: the collector's, and DNS.
    pub fn ports(&self) -> [u16; 2] {
        [self.port, 53]
    }
}

/// `NAME=VALUE`; the value is a secret.
fn add_header(headers: &mut HeaderMap, pair: &str) -> Result<(), String> {
    let (name, value) = pair.split_once('=').ok_or("expected NAME=VALUE")?;
    let name: HeaderName = name.trim().parse().map_err(|_| "what stands before the = is no name of a header")?;
    let mut value = HeaderValue::from_str(value.trim()).map_err(|_| format!("the value of {name} has characters that no header has"))?;
    value.set_sensitive(true);
    headers.insert(name, value);
    Ok(())
}

fn milliseconds(name: &str, value: Option<String>) -> Result<Option<Duration>, String> {
    let parse = |text: String| text.trim().parse::<u64>().ok().filter(|ms| *ms > 0).map(Duration::from_millis);
    value.map(|text| parse(text).ok_or_else(|| format!("{name}: expected a number of milliseconds"))).transpose()
}

/// `NAME=VALUE,...`, values percent-encoded.
fn resource(attributes: Option<String>, service: Option<String>) -> Result<Vec<(String, String)>, String> {
    let mut all = Vec::new();
    for pair in attributes.iter().flat_map(|list| list.split(',')).filter(|pair| !pair.trim().is_empty()) {
        let (name, value) = pair.split_once('=').ok_or("OTEL_RESOURCE_ATTRIBUTES: expected NAME=VALUE,...")?;
        all.push((name.trim().to_owned(), percent_decode_str(value.trim()).decode_utf8_lossy().into_owned()));
    }
    // The name of its own wins over one in the list; an attribute is told once.
    all.extend(service.map(|name| ("service.name".to_owned(), name)));
    all.reverse();
    let mut seen = std::collections::HashSet::new();
    all.retain(|(name, _): &(String, String)| seen.insert(name.clone()));
    all.reverse();
    Ok(all)
}

fn tls(file: Option<PathBuf>) -> Result<Arc<ClientConfig>, String> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions();
    let config = config.map_err(|error| format!("--otlp: {error}"))?;
    Ok(Arc::new(config.with_root_certificates(roots(file)?).with_no_client_auth()))
}

/// Those of the file, or this machine's; read here because the exporter may open few files.
fn roots(file: Option<PathBuf>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let certificates = match &file {
        Some(path) => {
            let refuse = |why: &dyn std::fmt::Display| format!("OTEL_EXPORTER_OTLP_CERTIFICATE: {}: {why}", path.display());
            let pem = fs::read(path).map_err(|error| refuse(&error))?;
            CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().map_err(|error| refuse(&error))?
        }
        None => load_native_certs().certs,
    };
    roots.add_parsable_certificates(certificates);
    if roots.is_empty() {
        return Err("--otlp: no certificates of authorities to check the collector's with: name a file with them in OTEL_EXPORTER_OTLP_CERTIFICATE (or SSL_CERT_FILE)".to_owned());
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str, headers: &[&str], env: &[(&str, &str)]) -> Result<Settings, String> {
        let headers: Vec<_> = headers.iter().map(|&header| header.to_owned()).collect();
        Settings::new(url, &headers, |name| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn an_address_is_taken_apart() {
        let plain = settings("http://collector:4318", &[], &[]).unwrap();
        assert_eq!((plain.host.as_str(), plain.port, plain.path.as_str()), ("collector", 4_318, ""));
        assert!(plain.compress && plain.tls.is_none());
        let v6 = settings("http://[::1]:4318/otel/", &[], &[("OTEL_EXPORTER_OTLP_COMPRESSION", "none")]).unwrap();
        assert_eq!((v6.host.as_str(), v6.path.as_str(), v6.authority.as_str(), v6.compress), ("::1", "/otel", "[::1]:4318", false));
        assert_eq!(settings("http://collector", &[], &[]).unwrap().port, 80);
        for bad in ["", "collector:4318", "collector", "ftp://collector", "http://", "http://a/?b=c", "http://user:geheim@collector"] {
            let why = settings(bad, &[], &[]).unwrap_err();
            assert!(why.starts_with("--otlp: ") && !why.contains("geheim"), "{bad}: {why}");
        }
    }

    #[test]
    fn what_a_header_says_is_never_shown() {
        let from_env = ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20geheim, x-tenant=env");
        let settings_ = settings("http://c", &["x-tenant=flag", "x-more=a=b"], &[from_env]).unwrap();
        let value = |name: &str| settings_.headers[name].to_str().unwrap().to_owned();
        assert_eq!((value("authorization"), value("x-tenant"), value("x-more")), ("Bearer geheim".into(), "flag".into(), "a=b".into()));
        assert!(!format!("{settings_:?}").contains("geheim"));
        for bad in ["geheim", "na me=geheim", "name=geheim\n"] {
            let why = settings("http://c", &[bad, "x=geheim\u{1}"], &[]).unwrap_err();
            assert!(!why.contains("geheim"), "{why}");
        }
    }

    #[test]
    fn what_opentelemetry_s_variables_say_counts() {
        let env = [
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
            ("OTEL_RESOURCE_ATTRIBUTES", "k8s.node.name=node%201,deployment.environment.name=test"),
            ("OTEL_SERVICE_NAME", "resets"),
        ];
        let with = settings("http://c", &[], &env).unwrap();
        assert_eq!((with.timeout.as_millis(), with.interval.as_millis()), (2_500, 1_000));
        let of = |name: &str| with.resource.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        assert_eq!((of("k8s.node.name"), of("service.name")), (Some("node 1"), Some("resets")));
        for (name, bad) in
            [("OTEL_EXPORTER_OTLP_TIMEOUT", "0"), ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"), ("OTEL_RESOURCE_ATTRIBUTES", "x")]
        {
            assert!(settings("http://c", &[], &[(name, bad)]).unwrap_err().contains(name));
        }
    }
}
