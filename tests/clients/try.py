#!/usr/bin/env python3
"""Puts the proxy between programs that other people wrote, and looks whether they notice.

    python3 -m venv clients && clients/bin/pip install aiohttp grpcio grpcio-reflection
    cargo build && clients/bin/python tests/clients/try.py target/debug/bellwether

curl, wrk, h2load (nghttp2-client), openssl and chromium are used where they are; what is missing is named and left out.
Everything listens on ports of the loopback that were free a moment ago, takes about a minute, and ends with the script.
Exit code 0: everything that was tried worked.
"""

import asyncio
import hashlib
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

import aiohttp
import grpc
from aiohttp import web
from grpc_reflection.v1alpha import proto_reflection_descriptor_database, reflection

PAGE = """<!doctype html><title>trying</title><script>
const log = {};
const wait = (target, name) => new Promise((yes, no) => {
  target.addEventListener(name, yes, {once: true});
  if (name !== 'close') target.addEventListener('error', () => no(new Error('socket failed')), {once: true});
});
async function open(path) {
  const socket = new WebSocket(location.origin.replace('http', 'ws') + path, ['echo']);
  socket.binaryType = 'arraybuffer';
  await wait(socket, 'open');
  return socket;
}
async function all() {
  log.page = performance.getEntriesByType('navigation')[0].nextHopProtocol;
  const answer = await fetch('/upload', {method: 'POST', body: new Uint8Array(200000)});
  log.upload = (await answer.json()).bytes;
  const first = performance.getEntriesByType('resource').find(entry => entry.name.endsWith('/upload'));
  log.fetch = first && first.nextHopProtocol;
  const socket = await open('/ws');
  log.subprotocol = socket.protocol;
  let heard = wait(socket, 'message'); socket.send('grüße'); log.text = (await heard).data;
  const bytes = new Uint8Array(100000).map((_, i) => i % 251);
  heard = wait(socket, 'message'); socket.send(bytes);
  const back = new Uint8Array((await heard).data);
  log.binary = back.length === bytes.length && back.every((byte, i) => byte === bytes[i]);
  let closed = wait(socket, 'close'); socket.close(4000, 'enough'); let end = await closed;
  log.closed_by_page = [end.code, end.wasClean];
  const other = await open('/ws');
  closed = wait(other, 'close'); other.send('close'); end = await closed;
  log.closed_by_server = [end.code, end.reason, end.wasClean];
}
all().catch(error => { log.error = String(error); })
  .finally(() => fetch('/result', {method: 'POST', body: JSON.stringify(log)}));
</script>"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---- what stands behind the proxy ----


class Upstream:
    """An HTTP and WebSocket server (aiohttp)."""

    def __init__(self):
        self.results = asyncio.Queue()
        self.closes = asyncio.Queue()

    async def start(self):
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/", lambda _: web.Response(text="hello\n"))
        app.router.add_get("/page", lambda _: web.Response(text=PAGE, content_type="text/html"))
        app.router.add_get("/ws", self.websocket)
        app.router.add_route("*", "/upload", self.upload)
        app.router.add_post("/result", self.result)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return site._server.sockets[0].getsockname()[1]

    async def upload(self, request):
        digest, count = hashlib.sha256(), 0
        async for piece in request.content.iter_any():
            digest.update(piece)
            count += len(piece)
        return web.json_response({"bytes": count, "sha256": digest.hexdigest()})

    async def result(self, request):
        await self.results.put(json.loads(await request.text()))
        return web.Response(text="thanks\n")

    async def websocket(self, request):
        stream = web.WebSocketResponse(protocols=["echo"])
        await stream.prepare(request)
        async for message in stream:
            if message.type == aiohttp.WSMsgType.TEXT and message.data == "close":
                await stream.close(code=4001, message=b"asked to")
            elif message.type == aiohttp.WSMsgType.TEXT:
                await stream.send_str(message.data)
            elif message.type == aiohttp.WSMsgType.BINARY:
                await stream.send_bytes(message.data)
        await self.closes.put(stream.close_code)
        return stream


async def start_grpc():
    """A gRPC server (grpcio, the C core) with one method of each kind, and reflection."""

    async def unary(request, context):
        if request == b"fail":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no söch thing")
        if request == b"slow":
            await asyncio.sleep(30)
        context.set_trailing_metadata((("x-trailing", "yes"),))
        return request

    async def down(request, _context):
        for index in range(5):
            yield request + str(index).encode()

    async def up(requests, _context):
        return str([len(request) async for request in requests]).encode()

    async def both(requests, _context):
        async for request in requests:
            yield request.upper()

    server = grpc.aio.server()
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Down": grpc.unary_stream_rpc_method_handler(down),
        "Up": grpc.stream_unary_rpc_method_handler(up),
        "Both": grpc.stream_stream_rpc_method_handler(both),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo.Echo", handlers),))
    reflection.enable_server_reflection(("echo.Echo", reflection.SERVICE_NAME), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


# ---- what stands before it ----


class Tries:
    def __init__(self, folder, plain, secure):
        self.folder, self.plain, self.secure, self.failed = folder, plain, secure, 0

    def check(self, name, holds, said=""):
        print(f"{'ok    ' if holds else 'FAILED'}  {name}" + (f"  {said}" if said else ""), flush=True)
        self.failed += not holds

    @staticmethod
    async def command(*arguments, limit=60):
        process = await asyncio.create_subprocess_exec(
            *map(str, arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), limit)
        except asyncio.TimeoutError:
            process.kill()
            return -1, "", "took too long"
        return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")

    async def curl(self):
        if not shutil.which("curl"):
            return print("curl is missing: left out")
        big = self.folder / "big"
        big.write_bytes(os.urandom(5_000_000))
        digest = hashlib.sha256(big.read_bytes()).hexdigest()
        plain, secure = f"http://127.0.0.1:{self.plain}", f"https://127.0.0.1:{self.secure}"
        write = ("-w", "\n%{http_version} %{http_code}")
        for name, url, options, version in [
            ("HTTP/1.1", plain, ("--http1.1",), "1.1"),
            ("HTTP/1.0", plain, ("--http1.0",), "1"),
            ("HTTP/2 by prior knowledge", plain, ("--http2-prior-knowledge",), "2"),
            # An upgrade to h2c is ignored, as RFC 9113 section 3.1 wants it.
            ("HTTP/2 by upgrade, ignored", plain, ("--http2",), "1.1"),
            ("TLS, HTTP/2", secure, ("--http2",), "2"),
            ("TLS, HTTP/1.1", secure, ("--http1.1",), "1.1"),
        ]:
            code, out, err = await self.command("curl", "-skS", *options, *write, url + "/")
            self.check(f"curl: {name}", code == 0 and out == f"hello\n\n{version} 200", err or repr(out))
            code, out, err = await self.command("curl", "-skS", *options, "-I", *write, url + "/")
            self.check(f"curl: {name}, HEAD", code == 0 and out.endswith(f"{version} 200"), err)
            for how in (
                ("-T", big),
                ("-T", big, "-H", "transfer-encoding: chunked"),
                ("--data-binary", f"@{big}", "-H", "expect: 100-continue"),
            ):
                if "--http1.0" in options and "transfer-encoding: chunked" in how:
                    continue
                code, out, err = await self.command("curl", "-skSv", *options, *how, url + "/upload")
                holds = code == 0 and digest in out
                if "expect: 100-continue" in how and "--http1.1" in options:
                    holds = holds and "100 Continue" in err
                said = "" if holds else err[-600:]
                self.check(f"curl: {name}, upload {' '.join(map(str, how)).replace(str(big), 'FILE')}", holds, said)

    async def load(self):
        if shutil.which("wrk"):
            code, out, err = await self.command("wrk", "-t1", "-c16", "-d3s", f"http://127.0.0.1:{self.plain}/")
            bad = re.search(r"Non-2xx|Socket errors", out)
            rate = re.search(r"Requests/sec: *(\S+)", out)
            self.check("wrk: 16 connections for 3 s", code == 0 and rate and not bad, err or (bad and out) or "")
        else:
            print("wrk is missing: left out")
        if not shutil.which("h2load"):
            return print("h2load is missing: left out")
        for name, options in [
            ("h2c", (f"http://127.0.0.1:{self.plain}/",)),
            ("HTTP/1.1", ("--h1", f"http://127.0.0.1:{self.plain}/")),
            ("h2 over TLS", (f"https://127.0.0.1:{self.secure}/",)),
            ("HTTP/1.1 over TLS", ("--h1", f"https://127.0.0.1:{self.secure}/")),
        ]:
            streams = "1" if "--h1" in options else "20"
            code, out, err = await self.command("h2load", "-n2000", "-c8", "-m", streams, *options)
            holds = code == 0 and "2000 succeeded, 0 failed, 0 errored, 0 timeout" in out and "2000 2xx" in out
            self.check(f"h2load: {name}", holds, "" if holds else out + err)

    async def grpc(self, certificate):
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        for name, channel in [
            ("h2c", grpc.aio.insecure_channel(f"127.0.0.1:{self.plain}")),
            ("TLS", grpc.aio.secure_channel(f"localhost:{self.secure}", credentials)),
        ]:
            async with channel:
                await self.calls(name, channel)
        listing = await asyncio.to_thread(self.reflect)
        self.check("grpc: reflection, as grpcurl lists", "echo.Echo" in listing, str(listing))

    def reflect(self):
        with grpc.insecure_channel(f"127.0.0.1:{self.plain}") as channel:
            return list(proto_reflection_descriptor_database.ProtoReflectionDescriptorDatabase(channel).get_services())

    async def calls(self, name, channel):
        unary = channel.unary_unary("/echo.Echo/Unary")
        call = unary(b"x" * 100_000, timeout=20)
        trailing = dict(await call.trailing_metadata())
        self.check(f"grpc {name}: unary, trailers", await call == b"x" * 100_000 and trailing.get("x-trailing") == "yes")
        down = [piece async for piece in channel.unary_stream("/echo.Echo/Down")(b"n", timeout=20)]
        self.check(f"grpc {name}: server streams", down == [b"n%d" % i for i in range(5)])

        async def pieces():
            for size in (1, 10, 100_000):
                yield b"y" * size

        up = await channel.stream_unary("/echo.Echo/Up")(pieces(), timeout=20)
        self.check(f"grpc {name}: client streams", up == b"[1, 10, 100000]")
        both = channel.stream_stream("/echo.Echo/Both")(timeout=20)
        heard = []
        for word in (b"one", b"two"):
            await both.write(word)
            heard.append(await both.read())
        await both.done_writing()
        self.check(f"grpc {name}: both stream, in turn", heard == [b"ONE", b"TWO"] and await both.read() == grpc.aio.EOF)
        for asked, path, options, code, detail in [
            (b"fail", "Unary", {"timeout": 20}, grpc.StatusCode.NOT_FOUND, "no söch thing"),
            (b"slow", "Unary", {"timeout": 0.5}, grpc.StatusCode.DEADLINE_EXCEEDED, None),
            (b"", "Nothing", {"timeout": 20}, grpc.StatusCode.UNIMPLEMENTED, None),
        ]:
            try:
                await channel.unary_unary(f"/echo.Echo/{path}")(asked, **options)
                self.check(f"grpc {name}: {code.name}", False, "no error")
            except grpc.aio.AioRpcError as error:
                holds = error.code() == code and detail in (None, error.details())
                self.check(f"grpc {name}: {code.name}", holds, "" if holds else str(error))

    async def websocket(self, upstream):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        async with aiohttp.ClientSession() as session:
            for url in (f"ws://127.0.0.1:{self.plain}/ws", f"wss://127.0.0.1:{self.secure}/ws"):
                async with session.ws_connect(url, ssl=context, protocols=["echo"]) as stream:
                    await stream.send_str("text")
                    await stream.send_bytes(b"\0" * 1_000_000)
                    holds = (await stream.receive()).data == "text"
                    holds = holds and len((await stream.receive()).data) == 1_000_000
                    await stream.ping()
                    await stream.send_str("close")
                    holds = holds and (await stream.receive()).type == aiohttp.WSMsgType.CLOSE
                    # What the server counts as the code is whatever the client answered; that it ended is enough.
                    await asyncio.wait_for(upstream.closes.get(), 10)
                    self.check(f"aiohttp: {url.split(':')[0]}", holds and stream.close_code == 4001)

    async def browser(self, upstream):
        program = shutil.which("chromium") or shutil.which("google-chrome")
        if not program:
            return print("chromium is missing: left out")
        for name, origin, protocol in [
            ("http", f"http://127.0.0.1:{self.plain}", "http/1.1"),
            ("https", f"https://localhost:{self.secure}", "h2"),
        ]:
            arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--ignore-certificate-errors"]
            arguments += ["--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage"]
            process = await asyncio.create_subprocess_exec(
                program, *arguments, f"--user-data-dir={self.folder}/{name}", f"{origin}/page",
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            try:
                seen = await asyncio.wait_for(upstream.results.get(), 90)
                closes = [await asyncio.wait_for(upstream.closes.get(), 10) for _ in range(2)]
            except asyncio.TimeoutError:
                self.check(f"chromium {name}", False, "no result")
                continue
            finally:
                if process.returncode is None:
                    process.terminate()
                await process.wait()
            expected = {
                "page": protocol, "upload": 200000, "fetch": protocol, "subprotocol": "echo", "text": "grüße",
                "binary": True, # aiohttp answers a close with a code of its own.
                "closed_by_page": [1000, True], "closed_by_server": [4001, "asked to", True],
            }
            self.check(f"chromium {name}: page, upload, WebSocket both ways, closed by either side",
                       seen == expected and sorted(closes) == [4000, 4001], json.dumps(seen, ensure_ascii=False))


async def main(binary):
    with tempfile.TemporaryDirectory(prefix="bellwether-clients.") as name:
        folder = Path(name)
        certificate, key = folder / "tls.crt", folder / "tls.key"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "90",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
             "-keyout", key, "-out", certificate], check=True, stderr=subprocess.DEVNULL)
        upstream = Upstream()
        http_port = await upstream.start()
        server, grpc_port = await start_grpc()
        plain, secure, admin = free_port(), free_port(), free_port()
        (folder / "bellwether.yaml").write_text(f"""
listeners:
  plain: 127.0.0.1:{plain}
  secure:
    address: 127.0.0.1:{secure}
    tls: {{ certificates: [{{ cert: tls.crt, key: tls.key }}] }}
routes:
  - match: {{ path_prefix: /echo.Echo }}
    cluster: grpc
  - match: {{ path_prefix: /grpc.reflection.v1alpha.ServerReflection }}
    cluster: grpc
  - cluster: http
clusters:
  http: {{ endpoints: ["127.0.0.1:{http_port}"] }}
  grpc: {{ endpoints: ["127.0.0.1:{grpc_port}"], protocol: http2 }}
admin: {{ address: "127.0.0.1:{admin}" }}
telemetry: {{ access_log: {{ format: text, output: access.log }} }}
runtime: {{ drain: {{ min: 0s, max: 5s }} }}
""")
        proxy = await asyncio.create_subprocess_exec(
            binary, "run", cwd=folder, stderr=open(folder / "log", "wb"), stdout=subprocess.DEVNULL)
        tries = Tries(folder, plain, secure)
        try:
            code, _, err = await Tries.command(
                binary, "wait", "--timeout", "30s", "--admin", f"http://127.0.0.1:{admin}")
            if code != 0:
                print((folder / "log").read_text(), err)
                return 1
            await tries.curl()
            await tries.load()
            await tries.grpc(certificate)
            await tries.websocket(upstream)
            await tries.browser(upstream)
        finally:
            if proxy.returncode is None:
                proxy.terminate()
            code = await proxy.wait()
            await server.stop(0)
        lines = (folder / "access.log").read_text().splitlines()
        print("WebSocket in the access log:", *[line for line in lines if "/ws" in line], sep="\n  ")
        tries.check("the proxy drained and ended", code == 0, f"exit code {code}")
        return 1 if tries.failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(asyncio.run(main(str(Path(sys.argv[1]).resolve()))))
