//! `rsttrace explain`: the chapter of causes, one at a time.

use std::process::ExitCode;

use anyhow::Context as _;
use include_dir::{Dir, include_dir};

use crate::{exit::USAGE, filter, model::Cause, status, stdout};

/// One page per cause, the chapter of the documentation.
static PAGES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../docs/causes");

/// Prints one page, or the list.
///
/// # Errors
/// When stdout cannot be written.
pub fn run(cause: Option<&str>) -> anyhow::Result<ExitCode> {
    let text = match cause.map(filter::cause) {
        None => list(),
        Some(Ok(cause)) => page(cause).to_owned(),
        Some(Err(why)) => {
            status::say(&format!("rsttrace: {why}"));
            return Ok(USAGE.into());
        }
    };
    stdout::write_all(text.as_bytes()).context("cannot write to stdout")?;
    Ok(ExitCode::SUCCESS)
}

/// The page of a cause.
pub fn page(cause: Cause) -> &'static str {
    PAGES.get_file(format!("{cause}.md")).and_then(|file| file.contents_utf8()).unwrap_or_default()
}

/// Its first sentence.
pub fn summary(cause: Cause) -> &'static str {
    page(cause).lines().find(|line| !line.is_empty() && !line.starts_with('#')).unwrap_or_default()
}

fn list() -> String {
    let width = Cause::ALL.iter().map(|cause| cause.name().len()).max().unwrap_or(0);
    let lines = Cause::ALL.iter().map(|&cause| format!("{:width$}  {}\n", cause.name(), summary(cause)));
    lines.chain(["\nrsttrace explain CAUSE says more.\n".to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_a_page_with_a_sentence() {
        for &cause in Cause::ALL {
            assert!(page(cause).starts_with(&format!("# {cause}\n")), "{cause}");
            assert!((10..=76).contains(&summary(cause).len()), "{cause}: {}", summary(cause));
        }
    }

    #[test]
    fn every_page_is_of_a_cause() {
        for file in PAGES.files() {
            let name = file.path().file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            assert!(name == "README" || name.parse::<Cause>().is_ok(), "{name}");
        }
    }
}
