//! nginx under wrk: requests on connections that are kept, and a connection for each request.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    Bench,
    load::Load,
    paired::{self, Condition, Run, Watch},
    process::{self, Process, Stream},
    programs,
    report::Report,
};
use crate::host;

const CONNECTIONS: &str = "16";
const PATIENCE: Duration = Duration::from_secs(10);

pub fn keep_alive(bench: &Bench) -> Result<Report> {
    let (mut report, hot) = figure(bench, Report::new("nginx-keepalive", "nginx, requests on connections that are kept"), &[])?;
    programs::tell_success_path(&mut report, &hot);
    Ok(report)
}

pub fn close(bench: &Bench) -> Result<Report> {
    figure(bench, Report::new("nginx-close", "nginx, one connection per request"), &["-H", "Connection: close"]).map(|(report, _)| report)
}

fn figure(bench: &Bench, mut report: Report, headers: &[&str]) -> Result<(Report, Vec<(&'static str, f64)>)> {
    let nginx = Nginx::start(&bench.scratch.path("nginx"))?;
    let work = |watch: Watch| nginx.serve(bench.seconds, headers, watch);
    let mut conditions = vec![Condition::Untraced, Condition::TRACED, Condition::EmptyPrograms];
    conditions.extend(paired::peers(true, &mut report));
    let comparison = paired::compare(bench, conditions, &work)?;
    let rate = comparison.tell(&mut report, "requests");
    report.target("at least 0.99 of untraced", super::report::ratio(rate), rate.median >= 0.99);
    comparison.tell_peers(&mut report);
    let hot = paired::with_statistics(bench, &mut report, &work)?;
    report.note(format!(
        "one worker, wrk with one thread and {CONNECTIONS} connections, an answer of 5 bytes; CPU is that of the worker (schedstat) and of wrk \
         (rusage): over loopback each does a part of the kernel's work for the other"
    ));
    Ok((report, hot))
}

struct Nginx {
    master: Option<Process>,
    worker: u32,
    url: String,
}

impl Nginx {
    fn start(dir: &Path) -> Result<Self> {
        let program = host::find("nginx").context("nginx is not installed (apt-get install nginx-light)")?;
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        // Taken again by nginx as soon as it is given up.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let config = dir.join("nginx.conf");
        let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path {name};"));
        let text = format!(
            "daemon off; worker_processes 1; pid nginx.pid; error_log stderr warn;\n\
             events {{ worker_connections 512; }}\n\
             http {{ access_log off; keepalive_requests 1000000000; {}\n\
             server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 200 \"hello\"; }} }} }}\n",
            paths.join(" ")
        );
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let mut command = Command::new(program);
        command.arg("-p").arg(dir).arg("-c").arg(&config).args(["-e", "stderr"]).stdin(Stdio::null()).stdout(Stdio::null());
        let master = Process::start(&mut command, Stream::Stderr)?;
        let end = Instant::now() + PATIENCE;
        // The master listens before it has a worker.
        let worker = loop {
            if let [worker] = process::children(master.pid())[..]
                && TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
            {
                break worker;
            }
            ensure!(Instant::now() < end && master.is_alive(), "nginx does not serve");
            thread::sleep(Duration::from_millis(10));
        };
        Ok(Self { master: Some(master), worker, url: format!("http://127.0.0.1:{port}/") })
    }

    fn serve(&self, seconds: f64, headers: &[&str], watch: Watch) -> Result<(Run, Option<Load>)> {
        let wrk = host::find("wrk").context("wrk is not installed (apt-get install wrk)")?;
        watch(self.worker)?;
        let before = process::cpu_ns(self.worker)?;
        let mut command = Command::new(wrk);
        let duration = format!("{seconds:.0}s");
        command.args(["-t", "1", "-c", CONNECTIONS, "-d", &duration]).args(headers).arg(&self.url).stdin(Stdio::null());
        let wrk = Process::start(&mut command, Stream::Stdout)?.end()?;
        let cpu_ns = process::cpu_ns(self.worker)? - before + wrk.cpu_ns;
        let words = wrk.lines.iter().find_map(|line| requests(line)).with_context(|| format!("wrk said: {}", wrk.lines.join("\n")))?;
        if let Some(errors) = wrk.lines.iter().find(|line| line.contains("Socket errors") || line.contains("Non-2xx")) {
            bail!("wrk: {}", errors.trim());
        }
        Ok((Run { work: words.0, seconds: words.1, cpu_ns: cpu_ns as f64 }, None))
    }
}

impl Drop for Nginx {
    /// A master that is killed leaves its worker behind.
    fn drop(&mut self) {
        let _ = self.master.take().map(Process::interrupt);
    }
}

/// "  123456 requests in 1.10s, 18.60MB read"
fn requests(line: &str) -> Option<(f64, f64)> {
    let (requests, rest) = line.trim().split_once(" requests in ")?;
    Some((requests.parse().ok()?, rest.split_once("s,")?.0.parse().ok()?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn wrk_is_understood() {
        assert_eq!(super::requests("  94133 requests in 1.10s, 14.81MB read"), Some((94133.0, 1.1)));
        assert_eq!(super::requests("Requests/sec:  85575.40"), None);
    }
}
