//! The commands of docs/examples say what the page has. `TRYCMD=overwrite` writes it there.

#[test]
fn examples_say_what_the_page_has() {
    // Where the recordings lie.
    std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples")).unwrap();
    trycmd::TestCases::new().case("README.md").env("TZ", "UTC").env("LANG", "C.UTF-8").env("LC_ALL", "C.UTF-8");
}
