//! `rsttrace explain`: the chapter of causes, one at a time.

use std::process::ExitCode;

use anyhow::Context as _;
use include_dir::{Dir, include_dir};

use crate::{exit::USAGE, filter, model::Cause, status, stdout};

/// One page per cause, the chapter of the documentation.
static PAGES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../docs/causes");

/// Prints one page, or the list, which is folded to so many columns.
///
/// # Errors
/// When stdout cannot be written.
pub fn run(cause: Option<&str>, columns: Option<usize>) -> anyhow::Result<ExitCode> {
    let text = match cause.map(filter::cause) {
        None => list(columns),
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

fn list(columns: Option<usize>) -> String {
    let width = Cause::ALL.iter().map(|cause| cause.name().len()).max().unwrap_or(0) + 2;
    let lines = Cause::ALL.iter().map(|&cause| format!("{:width$}{}\n", cause.name(), summary(cause)));
    let list: String = lines.chain(["\nrsttrace explain CAUSE says more.\n".to_owned()]).collect();
    // A column of single words says less.
    match columns.filter(|columns| *columns >= 2 * width) {
        Some(columns) => status::folded(&list, columns, &" ".repeat(width)),
        None => list,
    }
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

    #[test]
    fn the_list_fits_a_terminal() {
        let whole = list(None);
        assert_eq!((list(Some(200)), list(Some(20))), (whole.clone(), whole.clone()));
        let folded = list(Some(80));
        assert!(folded.lines().count() > whole.lines().count());
        assert!(folded.lines().all(|line| line.len() <= 80), "{folded}");
        assert_eq!(whole.split_whitespace().collect::<Vec<_>>(), folded.split_whitespace().collect::<Vec<_>>());
    }
}
