"""The servers that scripts/bench compares: each starts in a directory of its own, pinned to one core."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

SERVER_CORE, LOAD_CORE = "0", "1"
TICKS = os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port, process, log):
    for _ in range(400):
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    text = pathlib.Path(log).read_text(errors="replace")[-2000:] if os.path.exists(log) else ""
    raise SystemExit(f"{process.args[:4]} did not start on port {port}:\n{text}")


def make_certificates(place):
    """A CA made now and a leaf of the kind that larder mints (P-256), so that no side has the cheaper signature."""

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=place, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *key, "-days", "3", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=bench CA",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl("req", *key, "-keyout", "leaf.key", "-out", "leaf.csr", "-subj", "/CN=localhost")
    (place / "leaf.ext").write_text("basicConstraints=CA:FALSE\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl("x509", "-req", "-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "3",
            "-extfile", "leaf.ext", "-out", "leaf.pem")
    (place / "both.pem").write_bytes((place / "ca.pem").read_bytes() + (place / "ca.key").read_bytes())


class Server:
    """A running server and all its children."""

    running = []

    def __init__(self, name, port, command, log, core=SERVER_CORE, env=None, **how):
        self.name, self.port, self.log = name, port, log
        self.how = how
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        environment.update(env or {})
        self.process = subprocess.Popen(["taskset", "-c", core, *command], env=environment,
                                        stdout=open(log, "ab"), stderr=subprocess.STDOUT)
        Server.running.append(self)
        wait_for(port, self.process, log)

    def processes(self):
        found, waiting = [], [self.process.pid]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
                waiting += [int(child) for child in task.read_text().split()]
        return found

    def cpu(self):
        """Processor seconds of the server so far: all its threads and children, also those that have ended."""
        total = 0
        for pid in self.processes():
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += sum(int(field) for field in fields[11:15])
        return total / TICKS

    def rss(self):
        """Resident memory in MB, shared pages counted once for each process that has them."""
        pages = sum(int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.processes())
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def stop(self):
        for pid in reversed(self.processes()):
            try:
                os.kill(pid, 15)
            except ProcessLookupError:
                pass
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


NGINX = """
daemon off; worker_processes 1; error_log {dir}/error.log crit; pid {dir}/nginx.pid; {user}
events {{ worker_connections 8192; }}
http {{
  default_type application/octet-stream; access_log {log}; sendfile on; tcp_nopush on; tcp_nodelay on;
  keepalive_requests 1000000000; keepalive_timeout 600s; open_file_cache max=10000; open_file_cache_valid 600s;
  client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3; uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
  ssl_certificate {pki}/leaf.pem; ssl_certificate_key {pki}/leaf.key; ssl_session_cache shared:s:8m; ssl_ecdh_curve X25519;
  ssl_protocols TLSv1.3; http2_max_requests 1000000000;
  {body}
}}
"""


def nginx(name, place, pki, body, core=SERVER_CORE, log="off"):
    """nginx with `body` in its http block; `{plain}`, `{tls}` and `{h2}` in it become ports."""
    directory = place / name
    directory.mkdir()
    ports = {"plain": free_port(), "tls": free_port(), "h2": free_port()}
    for word, port in ports.items():
        body = body.replace("{%s}" % word, str(port))
    body = body.replace("{dir}", str(directory))
    user = "user root;" if os.geteuid() == 0 else ""
    (directory / "nginx.conf").write_text(NGINX.format(dir=directory, pki=pki, body=body, log=log, user=user))
    return Server(name, ports["tls"], ["/usr/sbin/nginx", "-c", str(directory / "nginx.conf")], directory / "out.log",
                  core=core, **ports)


def static_site(files):
    """Files as nginx gives them at its best."""
    return """server {
      listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl; listen 127.0.0.1:{h2} ssl http2; root %s;
      location / { add_header Cache-Control "public, max-age=864000"; etag on; } }""" % files


def origin_site(files):
    """What the caches fetch from: also many URLs of one big file, and one that comes at a gigabit a second."""
    return """server {
      listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl; root %s; add_header Cache-Control "public, max-age=864000";
      location ~ ^/cold/ { rewrite ^ /256m break; }
      location ~ ^/gigabit/ { rewrite ^ /256m break; limit_rate 125m; }
      location ~ ^/shared/ { rewrite ^ /16m break; limit_rate 50m; } }""" % files


def cache_site(origin):
    """nginx as a cache in front of the origin."""
    return """proxy_cache_path {dir}/cache levels=1:2 keys_zone=c:64m max_size=4g inactive=1d use_temp_path=off;
    server { listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl;
      location / { proxy_pass http://127.0.0.1:%d; proxy_cache c; proxy_cache_lock on; proxy_http_version 1.1;
        proxy_set_header Connection ""; } }""" % origin


def squid(place, pki):
    """squid with ssl_bump: hits from memory, certificates minted and kept."""
    directory = place / "squid"
    directory.mkdir()
    port = free_port()
    certgen = "/usr/lib/squid/security_file_certgen"
    subprocess.run([certgen, "-c", "-s", str(directory / "certs"), "-M", "16MB"], check=True, stdout=subprocess.DEVNULL)
    if os.geteuid() == 0:
        shutil.chown(directory, "proxy")
        for path in directory.rglob("*"):
            shutil.chown(path, "proxy")
    (directory / "squid.conf").write_text(f"""
http_port 127.0.0.1:{port} ssl-bump tls-cert={pki}/both.pem generate-host-certificates=on dynamic_cert_mem_cache_size=16MB
sslcrtd_program {certgen} -s {directory}/certs -M 16MB
sslcrtd_children 2 startup=1
tls_outgoing_options cafile={pki}/ca.pem
ssl_bump bump all
http_access allow all
cache_mem 1024 MB
maximum_object_size_in_memory 300 MB
maximum_object_size 300 MB
memory_cache_mode always
cache_log {directory}/cache.log
access_log none
cache_store_log none
pid_filename {directory}/squid.pid
coredump_dir {directory}
client_lifetime 1 day
shutdown_lifetime 1 seconds
""")
    return Server("squid", port, ["/usr/sbin/squid", "-N", "-f", str(directory / "squid.conf")], directory / "out.log")


def apt_cacher_ng(place):
    directory = place / "acng"
    (directory / "cache").mkdir(parents=True)
    (directory / "log").mkdir()
    port = free_port()
    (directory / "acng.conf").write_text(f"""CacheDir: {directory}/cache
LogDir: {directory}/log
SupportDir: /usr/lib/apt-cacher-ng
Port: {port}
BindAddress: 127.0.0.1
ForeGround: 1
VerboseLog: 0
AllowUserPorts: 0
""")
    try:
        return Server("acng", port, ["/usr/sbin/apt-cacher-ng", "-c", str(directory)], directory / "out.log")
    except SystemExit as reason:
        # It resolves its own address by ways that need an interface besides loopback, which a container may not have.
        print(f"left out: {reason}", file=sys.stderr)
        return None


def larder(binary, place, pki, name="larder", **environment):
    data = place / name
    port = free_port()
    return Server(name, port, [binary, "serve", "--data", str(data), "--listen", f"127.0.0.1:{port}"],
                  place / f"{name}.log", data=data, env={
                      "LARDER_UPSTREAM_CA": str(pki / "ca.pem"), "LARDER_ALLOW_NETS": "127.0.0.0/8",
                      "LARDER_LOG_FILTER": "error", **environment})
