use super::*;
use crate::net::netns::{Netns, tests::root};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, SocketAddrV4};
use std::thread;

/// A proxy on a thread of its own in front of `backend`, in this process's own namespace.
fn proxy_to(backend: SocketAddr) -> SocketAddr {
    proxy(move || {
        let stream = std::net::TcpStream::connect(backend)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    })
}

fn proxy(connect: impl Fn() -> io::Result<std::net::TcpStream> + Send + Sync + 'static) -> SocketAddr {
    proxy_waiting(Starts::default(), Duration::ZERO, connect)
}

fn proxy_waiting(
    starts: Starts,
    patience: Duration,
    connect: impl Fn() -> io::Result<std::net::TcpStream> + Send + Sync + 'static,
) -> SocketAddr {
    proxy_within(&Budget::new(20_000, 1, || {}), starts, patience, connect)
}

fn proxy_within(
    budget: &Budget,
    starts: Starts,
    patience: Duration,
    connect: impl Fn() -> io::Result<std::net::TcpStream> + Send + Sync + 'static,
) -> SocketAddr {
    let share = budget.share();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let serving =
            async { serve(TcpListener::from_std(listener).unwrap(), connect, starts, patience, share).await };
        runtime.block_on(serving).unwrap();
    });
    address
}

/// A backend that hands each connection to `handle` on a thread.
fn backend(handle: impl Fn(std::net::TcpStream) + Send + Sync + Clone + 'static) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let handle = handle.clone();
            thread::spawn(move || handle(stream.unwrap()));
        }
    });
    address
}

/// Reads all the client has to say before it answers: works only if half-closes pass.
fn echo_after_eof(mut stream: std::net::TcpStream) {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    stream.write_all(&all).unwrap();
}

#[test]
fn a_half_close_passes_through_and_the_answer_comes_back() {
    let address = proxy_to(backend(echo_after_eof));
    let mut client = std::net::TcpStream::connect(address).unwrap();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "question");
}

#[test]
fn a_big_transfer_arrives_whole_in_both_directions() {
    let address = proxy_to(backend(|mut stream| {
        let mut back = stream.try_clone().unwrap();
        io::copy(&mut stream, &mut back).unwrap();
    }));
    let client = std::net::TcpStream::connect(address).unwrap();
    let data: Vec<u8> = (0..32_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut writer = client.try_clone().unwrap();
    let sent = data.clone();
    let sender = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    (&client).read_to_end(&mut got).unwrap();
    sender.join().unwrap();
    assert!(got == data);
}

#[test]
fn a_slow_reader_stops_its_writer_instead_of_filling_memory() {
    let (report, sent) = std::sync::mpsc::channel();
    let address = proxy_to(backend(move |mut stream| {
        stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut total = 0;
        while let Ok(n @ 1..) = stream.write(&[0; 65536]) {
            total += n;
        }
        report.send(total).unwrap();
    }));
    let _client = std::net::TcpStream::connect(address).unwrap();
    // What fits into the sockets' own buffers, far below what an unbounded proxy would swallow.
    let total = sent.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(total < 64 << 20, "{total} bytes were taken without a reader");
}

#[test]
fn a_slow_reader_does_not_hold_up_others() {
    let address = proxy_to(backend(|mut stream| {
        let _ = stream.write_all(&vec![7; 16 << 20]);
    }));
    let _slow = std::net::TcpStream::connect(address).unwrap();
    thread::sleep(Duration::from_millis(100));
    let mut fast = std::net::TcpStream::connect(address).unwrap();
    let mut got = Vec::new();
    fast.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), 16 << 20);
}

#[test]
fn a_backend_that_refuses_resets_the_client() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut client = std::net::TcpStream::connect(proxy_to(free)).unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_client_waits_for_a_backend_that_is_being_started_and_for_no_other() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let starts = Starts::default();
    let address = proxy_waiting(starts.clone(), Duration::from_millis(1500), move || {
        let stream = std::net::TcpStream::connect(free)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    });
    let ask = || {
        let begun = std::time::Instant::now();
        let mut client = std::net::TcpStream::connect(address).unwrap();
        let mut answer = [0; 3];
        let got = client.write_all(b"ask").and_then(|()| client.read_exact(&mut answer)).map(|()| answer);
        (got.map_err(|e| e.kind()), begun.elapsed())
    };
    let (soon, long) = (Duration::from_millis(500), Duration::from_millis(1500));
    let answers_once_after = |delay: Duration| {
        thread::spawn(move || {
            thread::sleep(delay);
            let (mut stream, _) = std::net::TcpListener::bind(free).unwrap().accept().unwrap();
            io::copy(&mut stream.try_clone().unwrap().take(3), &mut stream).unwrap();
        })
    };
    // Not started: nothing to wait for.
    let (got, took) = ask();
    assert!(got == Err(ErrorKind::ConnectionReset) && took < soon, "{got:?} after {took:?}");
    for start in ["first", "second"] {
        starts.again();
        let late = answers_once_after(soon);
        let (got, took) = ask();
        assert!(got == Ok(*b"ask") && took >= soon, "{start} start: {got:?} after {took:?}");
        late.join().unwrap();
        // It has answered, and refuses now.
        let (got, took) = ask();
        assert!(
            got == Err(ErrorKind::ConnectionReset) && took < soon,
            "{start} start: {got:?} after {took:?}"
        );
    }
    starts.again();
    let (got, took) = ask();
    assert!(
        got == Err(ErrorKind::ConnectionReset) && took >= long && took < long * 3,
        "{got:?} after {took:?}"
    );
}

#[test]
fn a_reset_by_the_backend_reaches_the_client_as_a_reset() {
    let address = proxy_to(backend(|mut stream| {
        stream.write_all(b"half an answer").unwrap();
        thread::sleep(Duration::from_millis(50));
        setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
    }));
    let mut client = std::net::TcpStream::connect(address).unwrap();
    let error = client.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn more_clients_than_slots_are_all_served() {
    let address = proxy_to(backend(echo_after_eof));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(move || {
                for _ in 0..100 {
                    let mut client = std::net::TcpStream::connect(address).unwrap();
                    client.write_all(b"x").unwrap();
                    client.shutdown(Shutdown::Write).unwrap();
                    let mut answer = Vec::new();
                    client.read_to_end(&mut answer).unwrap();
                    assert_eq!(answer, b"x");
                }
            });
        }
    });
}

#[test]
fn connections_are_made_inside_the_namespace() {
    if !root() {
        return;
    }
    let ns = Netns::create().unwrap();
    let inside = ns.run_in(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let SocketAddr::V4(port) = inside.local_addr().unwrap() else { unreachable!() };
    thread::spawn(move || echo_after_eof(inside.accept().unwrap().0));
    let to = SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, port.port());
    let address = proxy(move || ns.connect(to));
    let mut client = std::net::TcpStream::connect(address).unwrap();
    client.write_all(b"over the border").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "over the border");
}

#[test]
fn connections_leave_descriptors_to_others_and_each_port_has_some() {
    let places = |descriptors, ports| {
        let budget = Budget::new(descriptors, ports, || {});
        let shares: Vec<Share> = (0..ports).map(|_| budget.share()).collect();
        let own: Vec<usize> = shares.iter().map(|share| share.own.available_permits()).collect();
        let all = own.iter().sum::<usize>() + budget.common.available_permits();
        (all as u64, own.into_iter().min().unwrap_or(0))
    };
    for descriptors in [256, 512, 1024, 4096, 20_000, 1 << 20, u64::MAX] {
        for ports in [1, 3, 16, 100, 2000] {
            let (all, own) = places(descriptors, ports);
            assert!((1..=MOST).contains(&all) && 2 * all <= descriptors - descriptors.min(RESERVED) / 2);
            assert!(own > 0 || all < 2 * ports as u64, "{descriptors} for {ports} ports");
        }
    }
    assert_eq!(places(1024, 1).0, 384);
}

#[test]
fn a_port_whose_clients_take_all_there_is_answers_again_and_starves_no_other() {
    use std::sync::atomic::AtomicUsize;
    let found_full = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&found_full);
    // 16 connections, of which each port has 4 for itself.
    let budget = Budget::new(RESERVED + 32, 2, move || {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let to = backend(echo_after_eof);
    let port = || {
        proxy_within(&budget, Starts::default(), Duration::ZERO, move || {
            let stream = std::net::TcpStream::connect(to)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        })
    };
    let (crowded, other) = (port(), port());
    let ask = |address: SocketAddr| {
        let mut client = std::net::TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.write_all(b"x").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).map(|_| answer)
    };
    let crowd: Vec<_> = (0..64).map(|_| std::net::TcpStream::connect(crowded).unwrap()).collect();
    let begun = Instant::now();
    while found_full.load(Ordering::SeqCst) == 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "all 64 got in");
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(ask(other).unwrap(), "x", "the other port has places of its own");
    drop(crowd);
    assert_eq!(ask(crowded).unwrap(), "x");
    assert_eq!(found_full.load(Ordering::SeqCst), 1, "told once");
}
