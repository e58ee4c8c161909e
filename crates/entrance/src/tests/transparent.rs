//! Back ends that see their clients' addresses: client, gateway and back end in a network each.

use std::net::{IpAddr, Ipv4Addr, UdpSocket as StdSocket};

use adit_host::netlink::{IfExists, InterfaceAddress, Netlink, Route};
use adit_host::netns::{Netns, TemporaryNetns, veth};
use adit_host::plumbing::{HostState, InProcess, Plumbing, Sysctl};
use adit_host::poll::{Events, Interest, Poller};
use adit_host::udp::{RecvBatch, Slots, UdpOptions, UdpSocket};

use super::*;

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const BACK: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// Gives an interface its address and the namespace its default route.
fn arrange(netns: &Netns, interface: &str, address: &str, gateway: Option<&str>) {
    netns.run_in(|| {
        let mut netlink = Netlink::open().unwrap();
        let address = InterfaceAddress { interface: interface.to_owned(), address: address.parse().unwrap() };
        netlink.add_address(&address, IfExists::Fail).unwrap();
        netlink.set_up(interface, true).unwrap();
        if let Some(gateway) = gateway {
            let route = Route::by_interface("0.0.0.0/0".parse().unwrap(), interface);
            let route = Route { gateway: Some(gateway.parse().unwrap()), ..route };
            netlink.add_route(&route, IfExists::Fail).unwrap();
        }
    });
}

#[test]
fn without_transparent_back_ends_the_machine_stays_as_it_is() {
    let route = TransparentRoute { mark: 1, table: 100, priority: 100, name: "adit_back".to_owned() };
    let options = BackendOptions::new("back", "192.0.2.1:1".parse().unwrap());
    assert_eq!(host_state([&options], &route), HostState::default());
}

#[test]
fn a_back_end_on_another_machine_sees_the_clients_address() {
    let make = || TemporaryNetns::create("adit-entrance").unwrap();
    let (near, gateway, far) = (make(), make(), make());
    veth("near", &near, "in", &gateway).unwrap();
    veth("out", &gateway, "far", &far).unwrap();
    arrange(&near, "near", "192.0.2.2/24", None);
    arrange(&gateway, "in", "192.0.2.1/24", None);
    arrange(&gateway, "out", "198.51.100.1/24", None);
    arrange(&far, "far", "198.51.100.2/24", Some("198.51.100.1"));
    let far_tcp = far.run_in(|| TcpListener::bind((BACK, 4433)).unwrap());
    let far_udp = far.run_in(|| StdSocket::bind((BACK, 4433)).unwrap());
    far_udp.set_read_timeout(Some(PATIENCE)).unwrap();

    let mut options = BackendOptions::new("back", (BACK, 4433).into());
    options.proxy = ProxyMode::Transparent;
    let directory = std::env::temp_dir().join(near.name());
    std::fs::create_dir_all(&directory).unwrap();
    gateway.run_in(|| {
        let route =
            TransparentRoute { mark: 0xad17, table: 177, priority: 177, name: "adit_back".to_owned() };
        let (mut plumbing, _) = InProcess::start(&directory.join("changes.json")).unwrap();
        let mut state = host_state([&options], &route);
        state.sysctls.push(Sysctl::new("net.ipv4.ip_forward", "1"));
        plumbing.apply(&state).unwrap();
        // What was made stays for as long as its network.
        std::mem::forget(plumbing);
    });
    std::fs::remove_dir_all(&directory).unwrap();
    let backend = Backend::new(options);

    let stage = gateway.run_in(|| stage_at((GATEWAY, 0).into(), &backend));
    let client = near.run_in(|| connect(stage.address));
    send(&client, b"relay");
    let server = accept(&far_tcp);
    assert_eq!(server.peer_addr().unwrap().ip(), IpAddr::from(CLIENT));
    assert_eq!(receive(&server, 5), b"relay");
    send(&server, b"answer");
    assert_eq!(receive(&client, 6), b"answer");

    let (port, relays) = gateway.run_in(|| {
        let shared = UdpOptions { reuse_address: true, ..UdpOptions::default() };
        let port = UdpSocket::bind((GATEWAY, 0).into(), &shared).unwrap();
        (port, DatagramRelays::start(DatagramOptions::default(), Arc::new(|_| {})).unwrap())
    });
    let client = near.run_in(|| StdSocket::bind((CLIENT, 0)).unwrap());
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"hello", port.local_addr()).unwrap();
    let mut batch = RecvBatch::new(1, Slots { size: 100, headroom: 0, tailroom: 0 });
    let poller = Poller::new().unwrap();
    poller.add(&port, 0, Interest::READ).unwrap();
    poller.wait(&mut Events::with_capacity(1), Some(PATIENCE)).unwrap();
    port.recv_batch(&mut batch).unwrap();
    let first = batch.get_mut(0).unwrap();
    relays.relay(first.bytes(), first.remote(), first.local(), &backend);
    let mut bytes = [0; 16];
    let (_, from) = far_udp.recv_from(&mut bytes).unwrap();
    assert_eq!(from.ip(), IpAddr::from(CLIENT));
    far_udp.send_to(b"answer", from).unwrap();
    assert_eq!(client.recv_from(&mut bytes).unwrap(), (6, port.local_addr()));
}

fn stage_at(address: SocketAddr, backend: &Arc<Backend>) -> Stage {
    let mut stage = Stage::new(Options::default(), LONG, Some(backend));
    let listener = TcpListener::bind(address).unwrap();
    stage.address = listener.local_addr().unwrap();
    stage.reception.listen(listener, 8, LONG).unwrap();
    stage
}
