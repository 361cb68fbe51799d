//! The command line.

fn main() -> std::process::ExitCode {
    spindle_control::cli::main()
}
