package chat.kith

import java.net.URI
import java.net.http.HttpClient
import java.net.http.HttpRequest
import java.net.http.HttpResponse
import java.nio.file.Path
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

/** A node inside a JVM program, through the same Kotlin that an Android app compiles. */
class NodeTest {
    @TempDir lateinit var folder: Path

    private fun config(data: String) =
        NodeConfig(data = data, http = "127.0.0.1:0", listen = listOf("/ip4/127.0.0.1/udp/0/quic-v1"), mdns = false)

    @Test
    fun `serves Matrix and keeps its name across a restart`() {
        val name = Node(config(folder.toString())).use { node ->
            val status = node.status()
            assertEquals(52, status.serverName.length)
            assertEquals("@alice:${status.serverName}", node.addUser("alice", "correct horse"))
            val request = HttpRequest.newBuilder(URI.create("${status.http}/_matrix/client/versions")).build()
            val answer = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString())
            assertEquals(200, answer.statusCode())
            assertTrue(answer.body().contains("\"versions\""))
            node.stop()
            status.serverName
        }
        Node(config(folder.toString())).use { node ->
            assertEquals(name, node.status().serverName)
            node.stop()
        }
    }

    @Test
    fun `rests and wakes`() {
        Node(config(folder.toString())).use { node ->
            node.suspend(wakeable = false)
            assertEquals(emptyList<String>(), node.status().listen)
            node.resume()
            assertEquals(1, node.status().listen.size)
            node.stop()
        }
    }

    @Test
    fun `refuses a ticket that is none`() {
        Node(config(folder.toString())).use { node ->
            assertThrows(KithException::class.java) { node.addPeer("kith:nonsense") }
            node.stop()
        }
    }
}
