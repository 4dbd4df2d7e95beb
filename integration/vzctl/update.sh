# What vzctl fleet runs in an environment: list what is installed, a line of
# package and version each; tell what is pending, a line each; or update.
# 69 is the end where there is no package manager that is known.
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
for manager in apt-get dnf zypper apk pacman none; do
	command -v $manager >/dev/null 2>&1 && break
done
strict='-o APT::Update::Error-Mode=any' # an index that cannot be fetched is an error
all='--setopt=skip_if_unavailable=False' # the same of dnf, whose dnf.conf often has it otherwise
keep='-o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold'

case "$1 $manager" in
*' none') exit 69 ;;

'list apt-get') dpkg-query -W -f '${db:Status-Abbrev}${Package}:${Architecture} ${Version}\n' | sed -n 's/^.i. *//p' ;;
'list dnf' | 'list zypper') rpm -qa --qf '%{NAME}.%{ARCH} %{EVR}\n' ;;
'list apk') apk info -v 2>/dev/null | sed -n 's/^\(.*\)-\([^-]*-r[0-9]*\)$/\1 \2/p' ;;
'list pacman') pacman -Q ;;

'pending apt-get')
	apt-get -q $strict update >&2 || exit 1
	plan=$(apt-get -q -s --with-new-pkgs upgrade) || exit 1
	echo "$plan" | sed -n 's/^Inst //p' ;;
'pending dnf')
	plan=$(dnf -q --refresh $all check-update)
	case $? in 0) ;; 100) echo "$plan" ;; *) exit 1 ;; esac ;;
'pending zypper')
	zypper --non-interactive refresh >&2 || exit 1
	plan=$(zypper -q --non-interactive list-updates) || exit 1
	echo "$plan" | grep '^v' || true ;;
'pending apk') # apk 2 has lists that are younger than four hours for new
	apk --force-refresh update >&2 || exit 1
	plan=$(apk upgrade --simulate) || exit 1
	echo "$plan" | grep '^(' || true ;;
'pending pacman') # beside its own lists, for these belong to what is installed
	lists=$(mktemp -d) && ln -s /var/lib/pacman/local "$lists/local" || exit 1
	chmod 755 "$lists" # pacman downloads as another user
	pacman -Sy --dbpath "$lists" --logfile /dev/null >&2
	ended=$?
	[ $ended -ne 0 ] || pacman -Qu --dbpath "$lists" | grep -v '\[ignored\]$' || true
	rm -rf "$lists"
	exit $ended ;;

'update apt-get')
	apt-get -q $strict update || exit
	dpkg --force-confdef --force-confold --configure -a # what an interruption has left, or apt-get refuses to begin
	apt-get -q -y $keep --with-new-pkgs upgrade ;;
'update dnf') dnf -y --refresh $all upgrade ;;
'update zypper')
	zypper --non-interactive refresh && zypper --non-interactive update --auto-agree-with-licenses
	ended=$?
	case $ended in 102 | 103) exit 0 ;; esac # done, and a restart is advised
	exit $ended ;;
'update apk') apk --force-refresh update && apk upgrade ;;
'update pacman')
	# The lock of one that was interrupted stays; one that works has it open.
	lock=$(readlink -f "$(pacman-conf DBPath)/db.lck")
	[ ! -e "$lock" ] || ls -l /proc/[0-9]*/fd 2>/dev/null | grep -Fq -e "-> $lock" || rm -f "$lock"
	pacman -Syu --noconfirm ;;
esac
