from __future__ import annotations

import socket
import threading

import pytest

from nnabla_dqa.parallel.connections import Offer, accept_all, connect, offer


@pytest.mark.parametrize("one_machine", [True, False])
def test_strangers_are_sent_away(one_machine):
    listening = offer(one_machine)
    to = Offer(*listening.offer)._replace(hosts=["no-such-host.invalid", "127.0.0.1"])
    found = {}
    server = threading.Thread(target=lambda: found.update(accept_all(listening, 3, 20.0)))
    server.start()
    strangers = [socket.create_connection(("127.0.0.1", to.port)) for _ in range(2)]
    strangers[0].sendall(b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n")
    strangers[1].close()
    with pytest.raises(OSError, match=r"rank 2 on .* cannot connect to rank 0"):
        connect(to._replace(token="00" * 32), 2, timeout=0.5)
    ranks = [connect(to, rank, timeout=20.0) for rank in (2, 1)]
    server.join()
    assert sorted(found) == [1, 2]
    ranks[0].sendall(b"x")
    assert found[2].recv(1) == b"x"
    for one in (*strangers, *ranks, *found.values()):
        one.close()


def test_a_rank_that_does_not_come_is_named():
    with pytest.raises(OSError, match="rank 1 did not connect to rank 0"):
        accept_all(offer(True), 3, timeout=0.2)


def test_a_stranger_in_the_place_of_rank_0_is_not_taken_for_it():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        to = Offer(["127.0.0.1"], listener.getsockname()[1], "11" * 32)

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(20)
                connection.sendall(b"?" * 16)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(OSError, match="cannot connect to rank 0"):
            connect(to, 1, timeout=0.3)
        thread.join()


def test_an_offer_to_other_machines_has_no_loopback_address():
    listening = offer(False)
    listening.socket.close()
    assert listening.offer.hosts[0] == socket.gethostname()
    assert not [host for host in listening.offer.hosts if host.startswith("127.")]
    assert offer_of_one_machine().hosts == ["127.0.0.1"]


def offer_of_one_machine():
    listening = offer(True)
    with listening.socket:
        assert listening.socket.getsockname()[0] == "127.0.0.1"
    return listening.offer
