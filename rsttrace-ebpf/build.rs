//! Zeroing and small copies inline. bpf-linker asks LLVM for `--bpf-expand-memcpy-in-order`, which
//! makes every `[0; 16]` a call of a byte-wise loop. Before 6.5 the verifier cannot follow a number
//! through such a call (`backtrack_insn()`), takes every number for decisive from then on
//! (`mark_all_scalars_precise()`) and walks nearly every path: a million instructions on 6.1.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "bpf") {
        println!("cargo::rustc-link-arg-bins=--disable-expand-memcpy-in-order");
    }
}
