//! The project's own commands: `cargo xtask <COMMAND>`. One file per command.

mod bench;
mod build;
mod confusion;
mod demo;
mod dist;
mod host;
mod setup;
mod sums;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Set up, build, show and test rsttrace")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building needs and this machine lacks
    Setup(setup::Options),
    /// Set up, then build target/release/rsttrace
    Build,
    /// Set up, build, then trace a loopback workload that makes every kind of end
    Demo(demo::Options),
    /// Set up, build, then make ends of every kind and compare what is reported with what was made
    Confusion(confusion::Options),
    /// Set up, build, then make a Debian package and an archive in target/dist
    Dist(dist::Options),
    /// Set up, build, then run all tests
    Test(test::Options),
    /// Set up, build, then measure what tracing costs, beside what people use instead
    Bench(bench::Options),
    /// Set up, build, then trace the same workload on other kernels, under emulation
    Vm(vm::Options),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Setup(options) => setup::run(&options),
        Command::Build => build::run(),
        Command::Demo(options) => demo::run(&options),
        Command::Confusion(options) => confusion::run(&options),
        Command::Dist(options) => dist::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Vm(options) => vm::run(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
