//! Listening sockets.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpListener;

/// Connections that wait to be accepted; the kernel's limit is `net.core.somaxconn`.
const BACKLOG: i32 = 1024;

/// Listens on `address`. `[::]` also accepts IPv4 clients, and becomes `0.0.0.0` on a machine without IPv6. Must be
/// called inside a runtime.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let bound = match listen(address) {
        Err(error)
            if address.is_ipv6() && address.ip().is_unspecified() && is_without_v6(&error) =>
        {
            listen(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
        }
        bound => bound,
    };
    bound.map_err(|error| {
        let hint = if error.kind() == io::ErrorKind::AddrInUse {
            "; is another larder running? --listen chooses a port"
        } else if error.kind() == io::ErrorKind::PermissionDenied {
            "; ports below 1024 need a privilege"
        } else {
            ""
        };
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}{hint}"))
    })
}

/// Takes over a socket that the service manager opened. Must be called inside a runtime.
pub fn adopt(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    // A .socket unit with Accept=yes passes a connection instead, on which accepting would always fail.
    if !SockRef::from(&listener).is_listener()? {
        let why = "the service manager passed a connection instead of a listening socket; a .socket unit needs Accept=no";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Whether the kernel has no IPv6, or it is disabled. A port in use is a different error: silently listening on half
/// of the requested addresses would go unnoticed.
fn is_without_v6(error: &io::Error) -> bool {
    let missing = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL, Errno::PROTONOSUPPORT];
    Errno::from_io_error(error).is_some_and(|errno| missing.contains(&errno))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Without it, connections of a larder that has just ended keep the port in use for a minute.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
