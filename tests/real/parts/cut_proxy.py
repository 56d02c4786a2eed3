"""TCP proxy for tests: passes bytes through; in "cut" mode the request reaches the server but the
client's connection is closed instead of the reply being forwarded (a lost acknowledgement)."""

import contextlib
import socket
import threading


class CutProxy:
    def __init__(self, target_port):
        self.target_port = target_port
        self.mode = "pass"  # "pass" | "cut" | "refuse"
        self.cuts = 0
        self.cut_limit = None  # after that many cuts go back to "pass"
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self.sock.close()

    def _accept(self):
        while True:
            try:
                c, _ = self.sock.accept()
            except OSError:
                return
            if self.mode == "refuse":
                c.close()
                continue
            s = socket.create_connection(("127.0.0.1", self.target_port))
            # handshake: forward replies until the client has sent its first request after the handshake
            st = {"armed": False}
            threading.Thread(target=self._up, args=(c, s, st), daemon=True).start()
            threading.Thread(target=self._down, args=(c, s, st), daemon=True).start()

    def _up(self, c, s, st):
        try:
            while data := c.recv(65536):
                # TLS record type 23 with more than a handshake's worth of bytes = a request
                if data[:1] == b"\x17" and len(data) > 100:
                    st["armed"] = True
                s.sendall(data)
        except OSError:
            pass
        for x in (c, s):
            with contextlib.suppress(OSError):
                x.shutdown(socket.SHUT_RDWR)

    def _down(self, c, s, st):
        try:
            while data := s.recv(65536):
                if self.mode == "cut" and st["armed"]:
                    self.cuts += 1
                    if self.cut_limit is not None and self.cuts >= self.cut_limit:
                        self.mode = "pass"
                    break
                c.sendall(data)
        except OSError:
            pass
        for x in (c, s):
            with contextlib.suppress(OSError):
                x.shutdown(socket.SHUT_RDWR)
