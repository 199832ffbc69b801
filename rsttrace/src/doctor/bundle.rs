//! Everything in one file, for a bug report.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use flate2::{Compression, write::GzEncoder};
use tar::{Builder, Header};

use super::{report::Report, text};
use crate::{output::json, probe::preflight};

/// Everything is below this directory.
const ROOT: &str = "rsttrace-doctor";

/// Writes a new file, readable by its owner only.
///
/// # Errors
/// Where it exists, or cannot be written; what was begun is removed.
pub fn write(path: &Path, report: &Report) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let result = pack(file, is_gz(path), report);
    if result.is_err() {
        let _ = std::fs::remove_file(path);
    }
    result
}

fn is_gz(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gz" || extension == "tgz")
}

fn pack(file: File, gz: bool, report: &Report) -> io::Result<()> {
    if gz {
        let mut encoder = GzEncoder::new(file, Compression::default());
        archive(&mut encoder, report)?;
        encoder.finish()?.sync_all()
    } else {
        let mut file = file;
        archive(&mut file, report)?;
        file.sync_all()
    }
}

fn archive(out: &mut impl Write, report: &Report) -> io::Result<()> {
    let mut doctor = Vec::new();
    json::line(&mut doctor, report)?;
    let mut records = Vec::new();
    report.records.iter().try_for_each(|record| json::line(&mut records, record))?;
    let files = [
        ("doctor.json", doctor),
        ("doctor.txt", text::render(report).into_bytes()),
        ("records.jsonl", records),
        ("kernel.txt", kernel(report).into_bytes()),
    ];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut builder = Builder::new(out);
    for (name, bytes) in files {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now);
        builder.append_data(&mut header, format!("{ROOT}/{name}"), bytes.as_slice())?;
    }
    builder.into_inner().map(drop)
}

/// What the kernel says of itself, and of our programs. Nothing of its command line, which may hold
/// secrets.
fn kernel(report: &Report) -> String {
    let mut text = format!("release  {}\nversion  {}\nmachine  {}\n", report.kernel, report.kernel_version, report.machine);
    for (name, value) in preflight::settings() {
        text.push_str(&format!("{name} = {value}\n"));
    }
    text.push_str("\nprogram, verified instructions, bytes:\n");
    let number = |n: Option<u32>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    for program in &report.programs {
        text.push_str(&format!("{}\t{}\t{}\n", program.name, number(program.verified_instructions), number(program.bytes)));
    }
    text
}
