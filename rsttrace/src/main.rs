fn main() {
    let p = rsttrace::probe::Probe::start(&rsttrace::probe::Options { want_fin: true, buffer_bytes: 8<<20, max_sockets: 1<<16, without: vec![], kernel_log: false });
    match p {
        Ok(mut p) => { println!("{:?}\n{:?}", p.hooks, p.warnings); println!("{:?}", p.counters());
            std::thread::sleep(std::time::Duration::from_secs(2));
            while let Some(e) = p.next() { println!("{} {:02x?}", e.len(), &e[..32]); }
        }
        Err(e) => println!("{e}"),
    }
}
