# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_rsttrace_global_optspecs
    string join \n r/replay= w/record= record-size= record-time= record-files= keep= keep-size= trigger= p/pid= container= unit= L/local-port= D/remote-port= port= addr= local-addr= remote-addr= 4/ipv4 6/ipv6 netns= errno= end= a/fin harm= cause= cmdline= j/json summary rate-limit= time= color= ascii q/quiet v/verbose c/count= fail-on= timers= error-log= log-format= unmatched http http-query metrics= otlp= otlp-header= d/duration= join-timeout= max-sockets= buffer= syscall-hooks without= keep-privileges h/help V/version
end

function __fish_rsttrace_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_rsttrace_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_rsttrace_using_subcommand
    set -l cmd (__fish_rsttrace_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c rsttrace -n "__fish_rsttrace_needs_command" -s r -l replay -d 'Show what is in FILE instead of tracing: the same as rsttrace replay FILE' -r -F
complete -c rsttrace -n "__fish_rsttrace_needs_command" -s w -l record -d 'Record everything that is shown in FILE, whatever stdout has: rsttrace replay shows it again' -r -F
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l record-size -d 'Begin a new file when this one has reached SIZE: 100M; the others become FILE.1, FILE.2' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l record-time -d 'Begin a new file after TIME: 1h' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l record-files -d 'Keep N files in all, and remove the oldest' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l keep -d 'Keep the last TIME in memory, and write it to the file of --record on SIGUSR2 or --trigger' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l keep-size -d 'Memory that --keep may take, compressed; beyond it the oldest is dropped' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l trigger -d 'With --keep: write what is kept when a record is like this: harm=lost, cause=keepalive-race' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -s p -l pid -d 'Only connections of these processes and their descendants: PID, or exact name' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l container -d 'Only processes in these containers: the id or its first digits, at least 4' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l unit -d 'Only processes in these units of systemd: nginx (nginx.service), session-3.scope' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -s L -l local-port -d 'Only these ports at our end: 80,443,8000-8099' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -s D -l remote-port -d 'Only these ports at the other end' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l port -d 'Only these ports at either end' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l addr -d 'Only addresses in CIDR at either end; `!CIDR` excludes' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l local-addr -d 'Only addresses in CIDR at our end; `!CIDR` excludes' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l remote-addr -d 'Only addresses in CIDR at the other end; `!CIDR` excludes' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l netns -d 'Only this network namespace: inode number, name (ip netns), or path' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l errno -d 'Only connections whose error was seen as one of these: ECONNRESET, 104' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l end -d 'Only these kinds of end' -r -f -a "reset\t'Both kinds of reset'
reset-received\t''
reset-sent\t''
timeout\t''
error\t''
fin\t'Orderly ends; implies --fin'"
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l harm -d 'Only ends that hurt this much: lost, possible, unknown, none' -r -f -a "lost\t''
possible\t''
unknown\t''
none\t''"
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l cause -d 'Only ends of these causes (rsttrace explain lists them)' -r -f -a "admin-kill\t''
listener-closed\t''
keepalive-timeout\t''
retransmit-timeout\t''
connect-timeout\t''
user-timeout\t''
zero-window-timeout\t''
undelivered-after-close\t''
out-of-memory\t''
refused-by-icmp\t''
unreachable\t''
gave-up-connecting\t''
close-with-unread-data\t''
linger-zero\t''
disconnect\t''
data-after-close\t''
linger2-abort\t''
silent-close\t''
closed-port\t''
no-connection\t''
accept-queue-overflow\t''
time-wait\t''
protocol-error\t''
refused\t''
reset-before-accept\t''
connect-probe\t''
write-after-peer-close\t''
keepalive-race\t''
closed-before-answer\t''
reset-while-closing\t''
reset-after-local-fin\t''
stale-connection\t''
no-connection-at-peer\t''
request-not-confirmed\t''
server-abort-before-response\t''
server-abort-mid-response\t''
peer-abort-idle\t''
peer-abort-mid-response\t''
peer-abort-after-response\t''
peer-abort-before-response\t''
orderly\t''
orderly-unread\t''
gave-up-waiting\t''
client-gave-up\t''
unknown\t''"
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l cmdline -d 'Only processes whose command line contains TEXT, and their descendants' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l rate-limit -d 'Write at most N lines per second of ends that are alike; the rest is one line with a count' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l time -d 'Times in text' -r -f -a "local\t''
utc\t''
relative\t''"
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l color -d 'Colours in text' -r -f -a "auto\t''
always\t''
never\t''"
complete -c rsttrace -n "__fish_rsttrace_needs_command" -s c -l count -d 'Stop after N records that were written' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l fail-on -d 'Exit with status 4 if a record is like this: harm=lost, cause=keepalive-race' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l timers -d 'More timers to match idle times with: lines of SECONDS NAME' -r -F
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l error-log -d 'Join the lines of this error log with the records that they are about; - is standard input' -r -F
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l log-format -d 'What writes the log' -r -f -a "nginx\t''
nginx-access\t''
haproxy\t''
envoy\t''"
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l metrics -d 'Serve metrics for Prometheus (OpenMetrics) at http://ADDR/metrics: PORT or IP:PORT' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l otlp -d 'Send records and metrics to an OpenTelemetry Collector: http://HOST:4318, https://HOST' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l otlp-header -d 'Send this header too; everybody sees it in `ps`, so secrets belong into OTEL_EXPORTER_OTLP_HEADERS' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -s d -l duration -d 'Stop after this time: 30s, 5m, 1h30m' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l join-timeout -d 'Print a record that is still incomplete after this time' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l max-sockets -d 'Connections whose past is remembered; memory is taken as needed, about 400 B each' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l buffer -d 'Size of the buffer between kernel and user space: 64k, 8M' -r
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l without -d 'Do not attach HOOK, or not by this way (fentry, fexit, kprobe); costs the fields that it feeds' -r -f -a "tcp_destroy_sock\t''
sock_recv_length\t''
sock_send_length\t''
sys_exit\t''
tcp_probe\t''
tcp_reset\t''
tcp_receive_reset\t''
tcp_send_reset\t''
tcp_v4_send_reset\t''
tcp_v6_send_reset\t''
inet_sock_set_state\t''
cgroup/getsockopt\t''
iter/task_file\t''
sched_process_fork\t''
sched_process_exec\t''
fentry\t''
fexit\t''
kprobe\t''"
complete -c rsttrace -n "__fish_rsttrace_needs_command" -s 4 -l ipv4 -d 'Only IPv4 (v4-mapped addresses are IPv4)'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -s 6 -l ipv6 -d 'Only IPv6'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -s a -l fin -d 'Show orderly ends (FIN) too'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -s j -l json -d 'One JSON object per line (docs/json.md)'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l summary -d 'No line per record: one table by cause, process and remote address, at the end and, of a live run, on SIGUSR1'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l ascii -d 'No characters beyond ASCII in text (the default outside UTF-8)'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -s q -l quiet -d 'Nothing on stderr but warnings and errors'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -s v -l verbose -d 'Show the evidence of each record; -vv also what the kernel half of a live run logs'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l unmatched -d 'Show lines of the log without a record, and errors without a line'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l http -d 'Name the HTTP/1 request that each connection was about, of the chosen processes'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l http-query -d 'Show the query of requests too (`?...`); needs --http'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l syscall-hooks -d 'Watch the exit of every system call too: shows which call got the error where no other hook can'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -l keep-privileges -d 'Keep all privileges after attaching, and run without a sandbox (docs/privileges.md)'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -s V -l version -d 'Print version'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -f -a "explain" -d 'Say what a cause means, why it happens, and what to change'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -f -a "doctor" -d 'Say what works on this machine and what does not: rights, hooks, fields, clocks'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -f -a "correlate" -d 'Join saved records with saved logs, as --error-log does while they are made'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -f -a "join" -d 'Join saved records with saved logs, as --error-log does while they are made'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -f -a "diff" -d 'Compare two files of records, such as before and after a deploy'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -f -a "report" -d 'Make a page of records: timeline, causes explained, top talkers, every verdict'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -f -a "replay" -d 'Show what was recorded with --record or saved with --json, with the same filters and outputs'
complete -c rsttrace -n "__fish_rsttrace_needs_command" -f -a "top" -d 'Show on the whole terminal, live, how connections end: by cause, process, remote address and port'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand explain" -s h -l help -d 'Print help'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand doctor" -l bundle -d 'Pack it all into FILE for a bug report: a tar archive, compressed if it ends in .gz or .tgz' -r -F
complete -c rsttrace -n "__fish_rsttrace_using_subcommand doctor" -l without -d 'Do not attach HOOK, to see what it costs' -r -f -a "tcp_destroy_sock\t''
sock_recv_length\t''
sock_send_length\t''
sys_exit\t''
tcp_probe\t''
tcp_reset\t''
tcp_receive_reset\t''
tcp_send_reset\t''
tcp_v4_send_reset\t''
tcp_v6_send_reset\t''
inet_sock_set_state\t''
cgroup/getsockopt\t''
iter/task_file\t''
sched_process_fork\t''
sched_process_exec\t''
fentry\t''
fexit\t''
kprobe\t''"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand doctor" -s j -l json -d 'One JSON object with every hook and every field (docs/doctor.schema.json)'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand doctor" -l redact -d 'No addresses, no host name, and no names of processes that are not ours'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand doctor" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand correlate" -l events -d 'A recording, or what rsttrace --json wrote; - is standard input' -r -F
complete -c rsttrace -n "__fish_rsttrace_using_subcommand correlate" -l error-log -d 'A log of the same time; - is standard input. May be given several times' -r -F
complete -c rsttrace -n "__fish_rsttrace_using_subcommand correlate" -l access-log -d 'An nginx access log in the combined format: its 499s and 408s are about ends too' -r -F
complete -c rsttrace -n "__fish_rsttrace_using_subcommand correlate" -l log-format -d 'What wrote the log' -r -f -a "nginx\t''
nginx-access\t''
haproxy\t''
envoy\t''"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand correlate" -l log-zone -d 'Time zone of the log, where its lines name none: UTC, Europe/Berlin, +02:00 (default: this machine\'s)' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand correlate" -l time -d 'Times in text' -r -f -a "local\t''
utc\t''
relative\t''"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand correlate" -l color -d 'Colours in text' -r -f -a "auto\t''
always\t''
never\t''"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand correlate" -l unmatched -d 'Show lines of the log without a record'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand correlate" -s a -l fin -d 'Show orderly ends (FIN) too'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand correlate" -s j -l json -d 'The records with "log" filled in, one JSON object per line (docs/json.md)'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand correlate" -l ascii -d 'No characters beyond ASCII in text (the default outside UTF-8)'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand correlate" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand join" -l events -d 'A recording, or what rsttrace --json wrote; - is standard input' -r -F
complete -c rsttrace -n "__fish_rsttrace_using_subcommand join" -l error-log -d 'A log of the same time; - is standard input. May be given several times' -r -F
complete -c rsttrace -n "__fish_rsttrace_using_subcommand join" -l access-log -d 'An nginx access log in the combined format: its 499s and 408s are about ends too' -r -F
complete -c rsttrace -n "__fish_rsttrace_using_subcommand join" -l log-format -d 'What wrote the log' -r -f -a "nginx\t''
nginx-access\t''
haproxy\t''
envoy\t''"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand join" -l log-zone -d 'Time zone of the log, where its lines name none: UTC, Europe/Berlin, +02:00 (default: this machine\'s)' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand join" -l time -d 'Times in text' -r -f -a "local\t''
utc\t''
relative\t''"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand join" -l color -d 'Colours in text' -r -f -a "auto\t''
always\t''
never\t''"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand join" -l unmatched -d 'Show lines of the log without a record'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand join" -s a -l fin -d 'Show orderly ends (FIN) too'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand join" -s j -l json -d 'The records with "log" filled in, one JSON object per line (docs/json.md)'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand join" -l ascii -d 'No characters beyond ASCII in text (the default outside UTF-8)'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand join" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand diff" -l color -d 'Colours in text' -r -f -a "auto\t''
always\t''
never\t''"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand diff" -s j -l json -d 'One JSON object (docs/diff.md)'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand diff" -l ascii -d 'No characters beyond ASCII in text (the default outside UTF-8)'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand diff" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand report" -s o -l output -d 'Where the page goes; a page that is there is replaced. - is standard output' -r -F
complete -c rsttrace -n "__fish_rsttrace_using_subcommand report" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -s p -l pid -d 'Only connections of these processes and their descendants: PID, or exact name' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -l container -d 'Only processes in these containers: the id or its first digits, at least 4' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -l unit -d 'Only processes in these units of systemd: nginx (nginx.service), session-3.scope' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -s L -l local-port -d 'Only these ports at our end: 80,443,8000-8099' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -s D -l remote-port -d 'Only these ports at the other end' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -l port -d 'Only these ports at either end' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -l addr -d 'Only addresses in CIDR at either end; `!CIDR` excludes' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -l local-addr -d 'Only addresses in CIDR at our end; `!CIDR` excludes' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -l remote-addr -d 'Only addresses in CIDR at the other end; `!CIDR` excludes' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -l netns -d 'Only this network namespace: inode number, name (ip netns), or path' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -l errno -d 'Only connections whose error was seen as one of these: ECONNRESET, 104' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -l end -d 'Only these kinds of end' -r -f -a "reset\t'Both kinds of reset'
reset-received\t''
reset-sent\t''
timeout\t''
error\t''
fin\t'Orderly ends; implies --fin'"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -l harm -d 'Only ends that hurt this much: lost, possible, unknown, none' -r -f -a "lost\t''
possible\t''
unknown\t''
none\t''"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -l cause -d 'Only ends of these causes (rsttrace explain lists them)' -r -f -a "admin-kill\t''
listener-closed\t''
keepalive-timeout\t''
retransmit-timeout\t''
connect-timeout\t''
user-timeout\t''
zero-window-timeout\t''
undelivered-after-close\t''
out-of-memory\t''
refused-by-icmp\t''
unreachable\t''
gave-up-connecting\t''
close-with-unread-data\t''
linger-zero\t''
disconnect\t''
data-after-close\t''
linger2-abort\t''
silent-close\t''
closed-port\t''
no-connection\t''
accept-queue-overflow\t''
time-wait\t''
protocol-error\t''
refused\t''
reset-before-accept\t''
connect-probe\t''
write-after-peer-close\t''
keepalive-race\t''
closed-before-answer\t''
reset-while-closing\t''
reset-after-local-fin\t''
stale-connection\t''
no-connection-at-peer\t''
request-not-confirmed\t''
server-abort-before-response\t''
server-abort-mid-response\t''
peer-abort-idle\t''
peer-abort-mid-response\t''
peer-abort-after-response\t''
peer-abort-before-response\t''
orderly\t''
orderly-unread\t''
gave-up-waiting\t''
client-gave-up\t''
unknown\t''"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -l rate-limit -d 'Write at most N lines per second of ends that are alike; the rest is one line with a count' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -l time -d 'Times in text' -r -f -a "local\t''
utc\t''
relative\t''"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -l color -d 'Colours in text' -r -f -a "auto\t''
always\t''
never\t''"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -s c -l count -d 'Stop after N records that were written' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -l fail-on -d 'Exit with status 4 if a record is like this: harm=lost, cause=keepalive-race' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -s 4 -l ipv4 -d 'Only IPv4 (v4-mapped addresses are IPv4)'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -s 6 -l ipv6 -d 'Only IPv6'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -s a -l fin -d 'Show orderly ends (FIN) too'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -s j -l json -d 'One JSON object per line (docs/json.md)'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -l summary -d 'No line per record: one table by cause, process and remote address, at the end and, of a live run, on SIGUSR1'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -l ascii -d 'No characters beyond ASCII in text (the default outside UTF-8)'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -s q -l quiet -d 'Nothing on stderr but warnings and errors'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -s v -l verbose -d 'Show the evidence of each record; -vv also what the kernel half of a live run logs'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand replay" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -s r -l replay -d 'Show what is in FILE instead of tracing: the same as rsttrace replay FILE' -r -F
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -s w -l record -d 'Record everything that is shown in FILE, whatever stdout has: rsttrace replay shows it again' -r -F
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l record-size -d 'Begin a new file when this one has reached SIZE: 100M; the others become FILE.1, FILE.2' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l record-time -d 'Begin a new file after TIME: 1h' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l record-files -d 'Keep N files in all, and remove the oldest' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l keep -d 'Keep the last TIME in memory, and write it to the file of --record on SIGUSR2 or --trigger' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l keep-size -d 'Memory that --keep may take, compressed; beyond it the oldest is dropped' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l trigger -d 'With --keep: write what is kept when a record is like this: harm=lost, cause=keepalive-race' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -s p -l pid -d 'Only connections of these processes and their descendants: PID, or exact name' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l container -d 'Only processes in these containers: the id or its first digits, at least 4' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l unit -d 'Only processes in these units of systemd: nginx (nginx.service), session-3.scope' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -s L -l local-port -d 'Only these ports at our end: 80,443,8000-8099' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -s D -l remote-port -d 'Only these ports at the other end' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l port -d 'Only these ports at either end' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l addr -d 'Only addresses in CIDR at either end; `!CIDR` excludes' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l local-addr -d 'Only addresses in CIDR at our end; `!CIDR` excludes' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l remote-addr -d 'Only addresses in CIDR at the other end; `!CIDR` excludes' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l netns -d 'Only this network namespace: inode number, name (ip netns), or path' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l errno -d 'Only connections whose error was seen as one of these: ECONNRESET, 104' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l end -d 'Only these kinds of end' -r -f -a "reset\t'Both kinds of reset'
reset-received\t''
reset-sent\t''
timeout\t''
error\t''
fin\t'Orderly ends; implies --fin'"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l harm -d 'Only ends that hurt this much: lost, possible, unknown, none' -r -f -a "lost\t''
possible\t''
unknown\t''
none\t''"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l cause -d 'Only ends of these causes (rsttrace explain lists them)' -r -f -a "admin-kill\t''
listener-closed\t''
keepalive-timeout\t''
retransmit-timeout\t''
connect-timeout\t''
user-timeout\t''
zero-window-timeout\t''
undelivered-after-close\t''
out-of-memory\t''
refused-by-icmp\t''
unreachable\t''
gave-up-connecting\t''
close-with-unread-data\t''
linger-zero\t''
disconnect\t''
data-after-close\t''
linger2-abort\t''
silent-close\t''
closed-port\t''
no-connection\t''
accept-queue-overflow\t''
time-wait\t''
protocol-error\t''
refused\t''
reset-before-accept\t''
connect-probe\t''
write-after-peer-close\t''
keepalive-race\t''
closed-before-answer\t''
reset-while-closing\t''
reset-after-local-fin\t''
stale-connection\t''
no-connection-at-peer\t''
request-not-confirmed\t''
server-abort-before-response\t''
server-abort-mid-response\t''
peer-abort-idle\t''
peer-abort-mid-response\t''
peer-abort-after-response\t''
peer-abort-before-response\t''
orderly\t''
orderly-unread\t''
gave-up-waiting\t''
client-gave-up\t''
unknown\t''"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l cmdline -d 'Only processes whose command line contains TEXT, and their descendants' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l rate-limit -d 'Write at most N lines per second of ends that are alike; the rest is one line with a count' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l time -d 'Times in text' -r -f -a "local\t''
utc\t''
relative\t''"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l color -d 'Colours in text' -r -f -a "auto\t''
always\t''
never\t''"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -s c -l count -d 'Stop after N records that were written' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l fail-on -d 'Exit with status 4 if a record is like this: harm=lost, cause=keepalive-race' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l timers -d 'More timers to match idle times with: lines of SECONDS NAME' -r -F
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l error-log -d 'Join the lines of this error log with the records that they are about; - is standard input' -r -F
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l log-format -d 'What writes the log' -r -f -a "nginx\t''
nginx-access\t''
haproxy\t''
envoy\t''"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l metrics -d 'Serve metrics for Prometheus (OpenMetrics) at http://ADDR/metrics: PORT or IP:PORT' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l otlp -d 'Send records and metrics to an OpenTelemetry Collector: http://HOST:4318, https://HOST' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l otlp-header -d 'Send this header too; everybody sees it in `ps`, so secrets belong into OTEL_EXPORTER_OTLP_HEADERS' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -s d -l duration -d 'Stop after this time: 30s, 5m, 1h30m' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l join-timeout -d 'Print a record that is still incomplete after this time' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l max-sockets -d 'Connections whose past is remembered; memory is taken as needed, about 400 B each' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l buffer -d 'Size of the buffer between kernel and user space: 64k, 8M' -r
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l without -d 'Do not attach HOOK, or not by this way (fentry, fexit, kprobe); costs the fields that it feeds' -r -f -a "tcp_destroy_sock\t''
sock_recv_length\t''
sock_send_length\t''
sys_exit\t''
tcp_probe\t''
tcp_reset\t''
tcp_receive_reset\t''
tcp_send_reset\t''
tcp_v4_send_reset\t''
tcp_v6_send_reset\t''
inet_sock_set_state\t''
cgroup/getsockopt\t''
iter/task_file\t''
sched_process_fork\t''
sched_process_exec\t''
fentry\t''
fexit\t''
kprobe\t''"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -s 4 -l ipv4 -d 'Only IPv4 (v4-mapped addresses are IPv4)'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -s 6 -l ipv6 -d 'Only IPv6'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -s a -l fin -d 'Show orderly ends (FIN) too'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -s j -l json -d 'One JSON object per line (docs/json.md)'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l summary -d 'No line per record: one table by cause, process and remote address, at the end and, of a live run, on SIGUSR1'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l ascii -d 'No characters beyond ASCII in text (the default outside UTF-8)'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -s q -l quiet -d 'Nothing on stderr but warnings and errors'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -s v -l verbose -d 'Show the evidence of each record; -vv also what the kernel half of a live run logs'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l unmatched -d 'Show lines of the log without a record, and errors without a line'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l http -d 'Name the HTTP/1 request that each connection was about, of the chosen processes'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l http-query -d 'Show the query of requests too (`?...`); needs --http'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l syscall-hooks -d 'Watch the exit of every system call too: shows which call got the error where no other hook can'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l interim -d 'In JSON, a summary about every second while something has changed; the last one counts'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -l keep-privileges -d 'Keep all privileges after attaching, and run without a sandbox (docs/privileges.md)'
complete -c rsttrace -n "__fish_rsttrace_using_subcommand top" -s h -l help -d 'Print help (see more with \'--help\')'

function __fish_rsttrace_needs_command
    set -l words (commandline -opc)
    contains -- -- $words
    and return 1
    # An option that waits for its value is no whole one.
    argparse -s (__fish_rsttrace_global_optspecs) -- $words[2..] 2>/dev/null
    or argparse -s (__fish_rsttrace_global_optspecs) -- $words[2..-2] 2>/dev/null
    or return
    set -q argv[1]
    or return 0
    echo $argv[1]
    return 1
end

function __fish_rsttrace_command
    set -l words (commandline -opc)
    set -l separator (contains --index -- -- $words)
    complete --do-complete (string join ' ' -- (string escape -- $words[(math $separator + 1)..]) (commandline -ct))
end
complete -c rsttrace -n "contains -- -- (commandline -opc)" -f -a "(__fish_rsttrace_command)"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand explain" -f -a "(rsttrace explain | string match -r '^[-0-9a-z]+  .*' | string replace -r '  +' \t)"
