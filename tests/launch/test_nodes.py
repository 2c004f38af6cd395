"""What several machines must know of each other."""

from effbench.launch.nodes import Endpoint


def test_ranks_talk_over_the_interface_that_leads_to_the_endpoint(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert Endpoint("127.0.0.1", 29400).interface() == {"GLOO_SOCKET_IFNAME": "lo"}
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert Endpoint("127.0.0.1", 29400).interface() == {}
