#!/usr/bin/env bash
# A MooseFS of one master and one chunkserver, mounted twice: at $1/A and at $1/B. Runs until killed.
# In a network and a process namespace of its own: `unshare --net --pid --fork --kill-child`.
set -euo pipefail
cd "$1"
# MooseFS refuses to speak over the loopback interface.
host=10.9.9.1
ip link add one type veth peer name two
ip address add "$host/24" dev one
ip link set lo up
ip link set one up
ip link set two up

mkdir data chunks disk A B
printf 'MFSM NEW' >data/metadata.mfs
echo '* / rw,alldirs,admin,maproot=0:0' >exports.cfg
: >topology.cfg
echo "$1/disk" >disk.cfg
cat >master.cfg <<END
DATA_PATH = $1/data
EXPORTS_FILENAME = $1/exports.cfg
TOPOLOGY_FILENAME = $1/topology.cfg
WORKING_USER = root
WORKING_GROUP = root
MATOCL_LISTEN_HOST = $host
MATOCS_LISTEN_HOST = $host
MATOML_LISTEN_HOST = $host
END
cat >chunkserver.cfg <<END
DATA_PATH = $1/chunks
HDD_CONF_FILENAME = $1/disk.cfg
MASTER_HOST = $host
CSSERV_LISTEN_HOST = $host
BIND_HOST = $host
WORKING_USER = root
WORKING_GROUP = root
HDD_LEAVE_SPACE_DEFAULT = 16MiB
MASTER_RECONNECTION_DELAY = 1
END
mfsmaster -c master.cfg -f start &
mfschunkserver -c chunkserver.cfg -f start &
for mount in A B; do
  until mfsmount "$mount" -H "$host" -f; do sleep 0.1; done &
done
wait
