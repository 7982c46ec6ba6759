//! Root directories of systems that never ran: the layout of each family of distributions, with a short shell script as its
//! update tool, and a comparable listing of everything in them.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use super::tools::{forget_proxies, run};

/// How the families differ, for the set-up script.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family {
    pub(crate) release: &'static str,
    pub(crate) anchors: &'static str,
    pub(crate) tool: &'static str,
    pub(crate) bundle: &'static str,
    /// Files of such a system, one line each.
    files: &'static [(&'static str, &'static str)],
}

pub(crate) const FAMILIES: [Family; 6] = [
    Family {
        release: "ID=debian\n",
        anchors: "usr/local/share/ca-certificates",
        tool: "update-ca-certificates",
        bundle: "etc/ssl/certs/ca-certificates.crt",
        files: &[
            ("etc/environment", ""),
            ("etc/apt/apt.conf.d/50own", "APT::X \"1\";\n"),
            ("etc/wgetrc", "tries = 3"),
            ("etc/sudoers.d/README", "#\n"),
            ("usr/local/cargo/config.toml", "[http]\ndebug = false\n\n[net]\nretry = 3\n"),
        ],
    },
    Family {
        release: "NAME=\"Ubuntu\"\nID=ubuntu\nID_LIKE=debian\n",
        anchors: "usr/local/share/ca-certificates",
        tool: "update-ca-certificates",
        bundle: "etc/ssl/certs/ca-certificates.crt",
        files: &[
            ("etc/environment", "PATH=\"/usr/bin\"\nNO_PROXY=\"one.example.org,localhost\"\n"),
            ("etc/apt/apt.conf.d/50own", "APT::X \"1\";\n"),
            ("etc/pip.conf", "[install]\nuser = no\n\n[global]\nretries = 3\n"),
        ],
    },
    Family {
        release: "ID=alpine\n",
        anchors: "usr/local/share/ca-certificates",
        tool: "update-ca-certificates",
        bundle: "etc/ssl/certs/ca-certificates.crt",
        files: &[("usr/local/bin/npm", ""), ("usr/local/etc/npmrc", "fund=false\n")],
    },
    Family {
        release: "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n",
        anchors: "etc/pki/ca-trust/source/anchors",
        tool: "update-ca-trust",
        bundle: "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        files: &[("etc/dnf/dnf.conf", "[main]\ngpgcheck=True\n"), ("etc/environment", "A=b")],
    },
    Family {
        release: "ID=arch\n",
        anchors: "etc/ca-certificates/trust-source/anchors",
        tool: "update-ca-trust",
        bundle: "etc/ca-certificates/extracted/tls-ca-bundle.pem",
        files: &[("etc/gitconfig", "[user]\n\tname = somebody"), ("opt/miniforge3/bin/conda", "")],
    },
    Family {
        release: "ID=\"opensuse-tumbleweed\"\nID_LIKE=\"opensuse suse\"\n",
        anchors: "etc/pki/trust/anchors",
        tool: "update-ca-certificates",
        bundle: "var/lib/ca-certificates/ca-bundle.pem",
        files: &[("etc/sysconfig/proxy", "PROXY_ENABLED=\"no\"\nHTTP_PROXY=\"\"\n")],
    },
];

/// One such directory.
pub(crate) struct Root {
    dir: TempDir,
    family: Family,
}

impl Root {
    pub(crate) fn new(family: Family) -> Self {
        let root = Self { dir: tempfile::tempdir().unwrap(), family };
        for directory in ["root/tmp", "root/etc/profile.d"] {
            std::fs::create_dir_all(root.dir.path().join(directory)).unwrap();
        }
        // A test's temporary directory is private to its user; a root directory is not.
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        root.put("etc/os-release", family.release);
        root.put(family.bundle, "the system's own roots\n");
        root.put("roots", "the system's own roots\n");
        root.put(&format!("{}/README", family.anchors), "for anchors\n");
        for (path, content) in family.files {
            root.put(path, content);
        }
        // Takes files called *.crt, as the real tools do, and prints nothing.
        let (anchors, bundle) = (family.anchors, family.bundle);
        root.tool(&format!(
            "cd \"$ROOT\" && {{ cat roots; cat {anchors}/*.crt 2>/dev/null || :; }} >{bundle}.new && mv {bundle}.new {bundle}"
        ));
        // chroot needs root's rights, and a program to run inside.
        std::fs::create_dir(root.stubs()).unwrap();
        let chroot = "#!/bin/sh\nROOT=$1\nexport ROOT\nshift\ncase $1 in /*) tool=$ROOT$1 ;; *) tool=$ROOT/usr/sbin/$1 ;; esac\n\
                      shift\nexec sh \"$tool\" \"$@\"\n";
        let stub = root.stubs().join("chroot");
        std::fs::write(&stub, chroot).unwrap();
        std::fs::set_permissions(&stub, std::fs::Permissions::from_mode(0o755)).unwrap();
        root
    }

    /// The root directory.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn stubs(&self) -> PathBuf {
        self.dir.path().join("stubs")
    }

    /// Writes a file.
    pub(crate) fn put(&self, path: &str, content: &str) {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Reads a file; a missing file is empty.
    pub(crate) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path().join(path)).unwrap_or_default()
    }

    /// The system's certificate bundle.
    pub(crate) fn bundle(&self) -> String {
        self.read(self.family.bundle)
    }

    /// Makes the update tool run `what`.
    pub(crate) fn tool(&self, what: &str) {
        let path = format!("usr/sbin/{}", self.family.tool);
        self.put(&path, &format!("#!/bin/sh\n{what}\n"));
        std::fs::set_permissions(self.path().join(path), std::fs::Permissions::from_mode(0o755))
            .unwrap();
    }

    /// Removes the update tool.
    pub(crate) fn without_tool(&self) {
        std::fs::remove_file(self.path().join("usr/sbin").join(self.family.tool)).unwrap();
    }

    /// Runs `script` in `shell` on this root.
    pub(crate) async fn set_up(&self, shell: &[&str], script: &Path, arguments: &[&str]) -> Output {
        let mut command = Command::new(shell[0]);
        command.args(&shell[1..]).arg(script).args(arguments).arg("--prefix").arg(self.path());
        self.dress(&mut command);
        run(command).await
    }

    /// Puts the stand-in for chroot into the `PATH` of `command`, and removes this machine's variables that the script reads.
    pub(crate) fn dress(&self, command: &mut Command) {
        let path = std::env::var("PATH").unwrap_or_default();
        forget_proxies(command);
        command
            .env("PATH", format!("{}:{path}", self.stubs().display()))
            .env_remove("CARGO_HOME")
            .env_remove("JAVA_HOME");
    }

    /// Puts the files of an ONBUILD base image into the root.
    pub(crate) fn make_image(&self) {
        let ca = Path::new(env!("CARGO_MANIFEST_DIR")).join("ca");
        for path in std::fs::read_dir(ca.join("setup")).unwrap() {
            let path = path.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            self.put(&format!("larder/setup/{name}"), &std::fs::read_to_string(&path).unwrap());
        }
        self.put("larder/run", &std::fs::read_to_string(ca.join("images/run")).unwrap());
    }

    /// Runs the root's `/larder/run` in `shell`, as the builder of a child image does.
    pub(crate) fn step(&self, shell: &[&str], arguments: &[&str]) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(shell[0]);
        forget_proxies(&mut command);
        command
            .args(&shell[1..])
            .arg(self.path().join("larder/run"))
            .args(arguments)
            .env("PATH", format!("{}:{path}", self.stubs().display()))
            .env("LARDER_IMAGE_ROOT", self.path())
            .env("LARDER_IMAGE_SECRET", self.path().join("secret"));
        command
    }

    /// Everything in it: the mode, and the content or the target of a link.
    pub(crate) fn listing(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        list(&self.path(), &mut found);
        found
    }
}

fn list(directory: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let about = std::fs::symlink_metadata(&path).unwrap();
        let content = if about.is_symlink() {
            format!("-> {}", std::fs::read_link(&path).unwrap().display())
        } else if about.is_dir() {
            list(&path, found);
            String::new()
        } else {
            String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned()
        };
        found.insert(path, format!("{:o} {content}", about.permissions().mode()));
    }
}
