#!/usr/bin/env python3
"""A real Slurm on this machine: slurmctld and two emulated nodes with four fake GPUs each, in a folder of its own, without systemd.

    python3 oracles/slurm_rig.py install          installs slurm-wlm and munge by apt-get where they are missing
    python3 oracles/slurm_rig.py start DIR        starts all, prints `SLURM_CONF=DIR/conf/slurm.conf` when both nodes are idle
    python3 oracles/slurm_rig.py stop DIR         ends all that start started

Tried with Slurm 22.05.8 of Debian 12. Needs root (Slurm's daemons and mknod do). The two nodes of 80 processors are this one machine; their
GPUs are copies of /dev/null. Ports are free ones; the keys and sockets of munge lie in DIR too, so that several rigs can stand beside each
other and beside a site's own Slurm. SlurmdTimeout is 10 s, so that a dead node is noticed within half a minute.
"""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

NODES = ["n1", "n2"]

SLURM_CONF = """\
ClusterName=ci
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobcomp.txt
JobAcctGatherType=jobacct_gather/none
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
StateSaveLocation={folder}/ctld
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdPidFile={folder}/%n/slurmd.pid
SlurmdSpoolDir={folder}/%n
SlurmdLogFile={folder}/log/slurmd-%n.log
SlurmdParameters=config_overrides
SlurmdTimeout=10
SlurmctldTimeout=10
ReturnToService=2
SwitchType=switch/none
KillWait=5
MinJobAge=300
SchedulerParameters=sched_interval=5,sched_min_interval=100000,batch_sched_delay=0
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=80 Sockets=2 CoresPerSocket=40 ThreadsPerCore=1 RealMemory=512000 Gres=gpu:4
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=80 Sockets=2 CoresPerSocket=40 ThreadsPerCore=1 RealMemory=512000 Gres=gpu:4
PartitionName=acc Nodes=n1,n2 Default=YES MaxTime=72:00:00 State=UP
PartitionName=debug Nodes=n1,n2 MaxTime=00:30:00 State=UP
"""


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def missing():
    return [name for name in ["slurmctld", "slurmd", "sbatch", "munged"] if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")]


def install():
    if missing():
        run("apt-get", "update", "-qq")
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", "slurm-wlm", "munge", env=quiet)
    print(run("/usr/sbin/slurmd", "-V").strip())


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(folder):
    if os.geteuid() != 0:
        sys.exit("the rig needs root: Slurm's daemons and the fake GPUs do")
    if missing():
        sys.exit(f"not installed: {', '.join(missing())}; run `python3 oracles/slurm_rig.py install`")
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    for name in ["conf", "ctld", "log", "munge", *NODES]:
        (folder / name).mkdir(exist_ok=True, mode=0o755)
    host = socket.gethostname().split(".")[0]
    conf = folder / "conf" / "slurm.conf"
    conf.write_text(SLURM_CONF.format(host=host, folder=folder, ports=free_ports(3)))
    for index in range(4):
        device = folder / f"gpu{index}"
        if not device.exists():
            os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))
    (folder / "conf" / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={folder}/gpu[0-3]\n")
    (folder / "conf" / "cgroup.conf").write_text("CgroupAutomount=no\n")
    munge = folder / "munge"
    key = munge / "key"
    if not key.exists():
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
    paths = [f"--{name}={munge / name.split('-')[0]}" for name in ["socket", "key-file", "pid-file", "log-file", "seed-file"]]
    run("/usr/sbin/munged", "--force", "--num-threads=2", *paths)
    env = {**os.environ, "SLURM_CONF": str(conf)}
    run("/usr/sbin/slurmctld", "-f", str(conf), env=env)
    for node in NODES:
        run("/usr/sbin/slurmd", "-f", str(conf), "-N", node, env=env)
    deadline = time.time() + 60
    while time.time() < deadline:
        states = subprocess.run(["sinfo", "--noheader", "--Node", "--partition=acc", "--format=%t"], capture_output=True, text=True, env=env)
        if states.stdout.split() == ["idle", "idle"]:
            print(f"SLURM_CONF={conf}")
            return
        time.sleep(0.2)
    sys.exit(f"the nodes did not come up within 60 s: {states.stdout}{states.stderr}\nlogs: {folder}/log")


def end(path, name):
    """Ends the process of a pid file, if it is the one that wrote it."""
    try:
        pid = int(path.read_text())
        if name not in pathlib.Path(f"/proc/{pid}/cmdline").read_text():
            return
        os.kill(pid, signal.SIGTERM)
        for _ in range(50):
            os.kill(pid, 0)
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
    except (OSError, ValueError):
        pass


def stop(folder):
    env = {**os.environ, "SLURM_CONF": str(folder / "conf" / "slurm.conf")}
    subprocess.run(["timeout", "10", "scancel", "--user=root"], capture_output=True, env=env)
    for node in NODES:
        end(folder / node / "slurmd.pid", "slurmd")
    end(folder / "slurmctld.pid", "slurmctld")
    end(folder / "munge" / "pid", "munged")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["install"]:
            install()
        case ["start", folder]:
            start(pathlib.Path(folder).absolute())
        case ["stop", folder]:
            stop(pathlib.Path(folder).absolute())
        case _:
            sys.exit(__doc__)
