//! Taking a port, on whatever addresses the machine has.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use rustix::io::Errno;
use rustix::net::sockopt::set_ipv6_v6only;
use tokio::net::{TcpListener, TcpSocket};

/// How many connections may wait to be accepted, as tokio has it.
const BACKLOG: u32 = 1_024;

/// Listens on an address.
///
/// `[::]` stands for all addresses: of IPv6 and IPv4, and of IPv4 alone on a machine without
/// IPv6.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    listen_by(address, bind)
}

fn listen_by<T>(address: SocketAddr, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    match bind(address) {
        Err(error) if is_every_address(address) && lacks_ipv6(&error) => {
            let address = (Ipv4Addr::UNSPECIFIED, address.port()).into();
            tracing::info!(%address, "there is no IPv6 here, listening on IPv4 alone");
            bind(address)
        }
        done => done,
    }
}

fn is_every_address(address: SocketAddr) -> bool {
    address.is_ipv6() && address.ip().is_unspecified()
}

fn lacks_ipv6(error: &io::Error) -> bool {
    // The first of a kernel without IPv6, the second where no interface may have an address of
    // it. Every machine has some address else, so that neither means anything more.
    let codes = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL];
    codes
        .map(|it| Some(it.raw_os_error()))
        .contains(&error.raw_os_error())
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    if is_every_address(address) {
        // Whatever the sysctl net.ipv6.bindv6only says.
        set_ipv6_v6only(&socket, false)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn every_address_is_those_of_ipv4_where_there_is_no_ipv6() {
        for (address, code, bound) in [
            ("[::]:9443", Errno::AFNOSUPPORT, Ok("0.0.0.0:9443")),
            ("[::]:9443", Errno::ADDRNOTAVAIL, Ok("0.0.0.0:9443")),
            // Whoever names an address means it.
            ("[::1]:9443", Errno::AFNOSUPPORT, Err(Errno::AFNOSUPPORT)),
            ("[::1]:9443", Errno::ADDRNOTAVAIL, Err(Errno::ADDRNOTAVAIL)),
            // Another process has the port.
            ("[::]:9443", Errno::ADDRINUSE, Err(Errno::ADDRINUSE)),
        ] {
            let tried = RefCell::new(Vec::new());
            let got = listen_by(address.parse().unwrap(), |address: SocketAddr| {
                tried.borrow_mut().push(address);
                match address {
                    SocketAddr::V4(_) => Ok(address.to_string()),
                    SocketAddr::V6(_) => Err(code.into()),
                }
            });
            let got = got.map_err(|error| Errno::from_io_error(&error).unwrap());
            assert_eq!(got.as_deref().map_err(|it| *it), bound, "{address}: {code}");
            assert_eq!(tried.borrow()[0].to_string(), address);
        }
    }

    #[test]
    fn every_address_is_taken_at_once_where_there_is_ipv6() {
        let tried = RefCell::new(0);
        let bound = listen_by("[::]:9443".parse().unwrap(), |address| {
            *tried.borrow_mut() += 1;
            Ok(address)
        });
        assert_eq!(bound.unwrap().to_string(), "[::]:9443");
        assert_eq!(*tried.borrow(), 1);
    }
}
