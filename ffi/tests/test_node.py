"""A node inside a Python program: starts, serves Matrix, reports, stops."""

import json
import os
import tempfile
import unittest
import urllib.request

import kith_ffi


RELAY = "/ip4/127.0.0.1/udp/1/quic-v1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


def config(data, **more):
    listen = ["/ip4/127.0.0.1/udp/0/quic-v1"]
    return kith_ffi.NodeConfig(data=data, http="127.0.0.1:0", listen=listen, mdns=False, **more)


def get(node, path, token=None):
    request = urllib.request.Request(node.status().http + path)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


class NodeTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def test_serves_a_matrix_client_and_reports_its_status(self):
        node = kith_ffi.Node(config(self.folder.name))
        self.addCleanup(node.stop)
        status = node.status()
        self.assertEqual(len(status.server_name), 52)
        self.assertTrue(status.ticket.startswith("kith:"))
        self.assertEqual(status.peers, [])
        self.assertIn("versions", get(node, "/_matrix/client/versions"))

        user_id = node.add_user("alice", "correct horse")
        self.assertEqual(user_id, f"@alice:{status.server_name}")
        body = json.dumps({
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": "alice"},
            "password": "correct horse",
        }).encode()
        with urllib.request.urlopen(status.http + "/_matrix/client/v3/login", data=body, timeout=30) as answer:
            token = json.load(answer)["access_token"]
        self.assertEqual(get(node, "/_matrix/client/v3/account/whoami", token)["user_id"], user_id)

    def test_keeps_its_name_across_a_restart(self):
        node = kith_ffi.Node(config(self.folder.name))
        name = node.status().server_name
        node.stop()
        node = kith_ffi.Node(config(self.folder.name))
        self.assertEqual(node.status().server_name, name)
        node.stop()

    def test_two_nodes_in_one_program_meet_by_ticket(self):
        with tempfile.TemporaryDirectory() as other_folder:
            first = kith_ffi.Node(config(self.folder.name))
            second = kith_ffi.Node(config(other_folder))
            added = second.add_peer(first.status().ticket)
            self.assertEqual(added, [first.status().server_name])
            second.stop()
            first.stop()

    def test_rests_and_serves_its_own_clients_meanwhile(self):
        node = kith_ffi.Node(config(self.folder.name, profile=kith_ffi.Profile.PHONE))
        self.addCleanup(node.stop)
        listening = node.status().listen
        self.assertEqual(len(listening), 1)
        node.suspend(wakeable=False)
        self.assertEqual(node.status().listen, [])
        self.assertIn("versions", get(node, "/_matrix/client/versions"))
        node.resume()
        self.assertEqual(len(node.status().listen), 1)
        node.stop()
        with self.assertRaises(kith_ffi.KithError.Stopped):
            node.suspend(wakeable=True)

    def test_relays_are_added_kept_and_removed(self):
        other = RELAY.replace("/udp/1/", "/udp/2/")
        node = kith_ffi.Node(config(self.folder.name, relays=[RELAY]))
        node.add_relay(other)
        node.stop()
        node = kith_ffi.Node(config(self.folder.name, relays=[RELAY]))
        self.addCleanup(node.stop)
        relays = [(relay.address, relay.configured, relay.place) for relay in node.status().relays]
        self.assertEqual(relays, [(RELAY, True, False), (other, False, False)])
        with self.assertRaises(kith_ffi.KithError.Refused):
            node.remove_relay(RELAY)
        node.remove_relay(other)
        self.assertEqual([relay.address for relay in node.status().relays], [RELAY])
        for nonsense in ["nonsense", "/ip4/127.0.0.1/udp/1/quic-v1"]:
            with self.assertRaises(kith_ffi.KithError.Invalid):
                node.add_relay(nonsense)

    def test_errors_are_exceptions_with_a_reason(self):
        node = kith_ffi.Node(config(self.folder.name))
        with self.assertRaises(kith_ffi.KithError) as locked:
            kith_ffi.Node(config(self.folder.name))
        self.assertIn("another", str(locked.exception))
        with self.assertRaises(kith_ffi.KithError):
            node.add_peer("kith:nonsense")
        node.stop()
        with self.assertRaises(kith_ffi.KithError):
            node.add_user("bob", "x")
        missing = os.path.join(self.folder.name, "file")
        open(missing, "w").close()
        with self.assertRaises(kith_ffi.KithError):
            kith_ffi.Node(config(missing))


if __name__ == "__main__":
    unittest.main()
