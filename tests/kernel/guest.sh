# Inside the virtual machine of scripts/test-kernel: load the drivers, then run the tests. $1: the repository; the rest: for pytest.
root=$1; shift
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb COLUMNS=110 SYSTEMD_IGNORE_CHROOT=1
export ULNA_KERNEL_GUEST=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
for variable in XDG_RUNTIME_DIR XDG_CACHE_HOME; do unset $variable; done
cd "$root" || exit 1
for module in "vivid n_devs=1" vcan can-raw uinput joydev evdev hid-generic usbhid uhid dummy_hcd libcomposite usb_f_acm cdc-acm; do
    /run/busybox modprobe $module || echo "no module $module"
done
/run/busybox ip link set lo up
mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
# udev makes the names that stay the same; where there is none, the tests make them as it would
udevd=$(command -v /lib/systemd/systemd-udevd /usr/lib/systemd/systemd-udevd | head -1)
echo "modules loaded after s: $(cut -d' ' -f1 /proc/uptime)"
if [ -n "$udevd" ]; then
    mkdir -p /run/udev && "$udevd" --daemon && udevadm trigger --action=add && udevadm settle --timeout=30
fi
echo "drivers loaded after s: $(cut -d' ' -f1 /proc/uptime)"
exec .venv/bin/python -m pytest -p no:cacheprovider -q tests/kernel "$@"
