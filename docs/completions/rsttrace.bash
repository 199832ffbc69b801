_rsttrace() {
    for ((i = 1; i < COMP_CWORD; i++)); do
        if [[ ${COMP_WORDS[i]} == -- ]] && declare -F _command_offset >/dev/null; then
            _command_offset $((i + 1))
            return
        fi
    done
    local i cur prev opts cmd
    COMPREPLY=()
    if [[ "${BASH_VERSINFO[0]}" -ge 4 ]]; then
        cur="$2"
    else
        cur="${COMP_WORDS[COMP_CWORD]}"
    fi
    prev="$3"
    cmd=""
    opts=""

    for i in "${COMP_WORDS[@]:0:COMP_CWORD}"
    do
        case "${cmd},${i}" in
            ",$1")
                cmd="rsttrace"
                ;;
            rsttrace,correlate)
                cmd="rsttrace__subcmd__correlate"
                ;;
            rsttrace,diff)
                cmd="rsttrace__subcmd__diff"
                ;;
            rsttrace,doctor)
                cmd="rsttrace__subcmd__doctor"
                ;;
            rsttrace,explain)
                cmd="rsttrace__subcmd__explain"
                ;;
            rsttrace,join)
                cmd="rsttrace__subcmd__correlate"
                ;;
            rsttrace,replay)
                cmd="rsttrace__subcmd__replay"
                ;;
            rsttrace,report)
                cmd="rsttrace__subcmd__report"
                ;;
            rsttrace,top)
                cmd="rsttrace__subcmd__top"
                ;;
            *)
                ;;
        esac
    done

    case "${cmd}" in
        rsttrace)
            opts="-r -w -p -L -D -4 -6 -a -j -q -v -c -d -h -V --replay --record --record-size --record-time --record-files --keep --keep-size --trigger --pid --container --unit --local-port --remote-port --port --addr --local-addr --remote-addr --ipv4 --ipv6 --netns --errno --end --fin --harm --cause --cmdline --json --summary --rate-limit --time --color --ascii --quiet --verbose --count --fail-on --timers --error-log --log-format --unmatched --http --http-query --metrics --otlp --otlp-header --duration --join-timeout --max-sockets --buffer --syscall-hooks --without --keep-privileges --help --version explain doctor correlate join diff report replay top"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 1 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --replay)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                -r)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --record)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                -w)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --record-size)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --record-time)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --record-files)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --keep)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --keep-size)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --trigger)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --pid)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                -p)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --container)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --unit)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --local-port)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                -L)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --remote-port)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                -D)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --port)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --addr)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --local-addr)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --remote-addr)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --netns)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --errno)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --end)
                    COMPREPLY=($(compgen -W "reset reset-received reset-sent timeout error fin" -- "${cur}"))
                    return 0
                    ;;
                --harm)
                    COMPREPLY=($(compgen -W "lost possible unknown none" -- "${cur}"))
                    return 0
                    ;;
                --cause)
                    COMPREPLY=($(compgen -W "admin-kill listener-closed keepalive-timeout retransmit-timeout connect-timeout user-timeout zero-window-timeout undelivered-after-close out-of-memory refused-by-icmp unreachable gave-up-connecting close-with-unread-data linger-zero disconnect data-after-close linger2-abort silent-close closed-port no-connection accept-queue-overflow time-wait protocol-error refused reset-before-accept connect-probe write-after-peer-close keepalive-race closed-before-answer reset-while-closing reset-after-local-fin stale-connection no-connection-at-peer request-not-confirmed server-abort-before-response server-abort-mid-response peer-abort-idle peer-abort-mid-response peer-abort-after-response peer-abort-before-response orderly orderly-unread gave-up-waiting client-gave-up unknown" -- "${cur}"))
                    return 0
                    ;;
                --cmdline)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --rate-limit)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --time)
                    COMPREPLY=($(compgen -W "local utc relative" -- "${cur}"))
                    return 0
                    ;;
                --color)
                    COMPREPLY=($(compgen -W "auto always never" -- "${cur}"))
                    return 0
                    ;;
                --count)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                -c)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --fail-on)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --timers)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --error-log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log-format)
                    COMPREPLY=($(compgen -W "nginx nginx-access haproxy envoy" -- "${cur}"))
                    return 0
                    ;;
                --metrics)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp-header)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --duration)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                -d)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --join-timeout)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --max-sockets)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --buffer)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --without)
                    COMPREPLY=($(compgen -W "tcp_destroy_sock sock_recv_length sock_send_length sys_exit tcp_probe tcp_reset tcp_receive_reset tcp_send_reset tcp_v4_send_reset tcp_v6_send_reset inet_sock_set_state cgroup/getsockopt iter/task_file sched_process_fork sched_process_exec fentry fexit kprobe" -- "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        rsttrace__subcmd__correlate)
            opts="-a -j -h --events --error-log --access-log --log-format --log-zone --unmatched --fin --json --time --color --ascii --help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --events)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --error-log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --access-log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log-format)
                    COMPREPLY=($(compgen -W "nginx nginx-access haproxy envoy" -- "${cur}"))
                    return 0
                    ;;
                --log-zone)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --time)
                    COMPREPLY=($(compgen -W "local utc relative" -- "${cur}"))
                    return 0
                    ;;
                --color)
                    COMPREPLY=($(compgen -W "auto always never" -- "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        rsttrace__subcmd__diff)
            opts="-j -h --json --color --ascii --help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --color)
                    COMPREPLY=($(compgen -W "auto always never" -- "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        rsttrace__subcmd__doctor)
            opts="-j -h --json --bundle --redact --without --help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --bundle)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --without)
                    COMPREPLY=($(compgen -W "tcp_destroy_sock sock_recv_length sock_send_length sys_exit tcp_probe tcp_reset tcp_receive_reset tcp_send_reset tcp_v4_send_reset tcp_v6_send_reset inet_sock_set_state cgroup/getsockopt iter/task_file sched_process_fork sched_process_exec fentry fexit kprobe" -- "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        rsttrace__subcmd__explain)
            opts="-h --help admin-kill listener-closed keepalive-timeout retransmit-timeout connect-timeout user-timeout zero-window-timeout undelivered-after-close out-of-memory refused-by-icmp unreachable gave-up-connecting close-with-unread-data linger-zero disconnect data-after-close linger2-abort silent-close closed-port no-connection accept-queue-overflow time-wait protocol-error refused reset-before-accept connect-probe write-after-peer-close keepalive-race closed-before-answer reset-while-closing reset-after-local-fin stale-connection no-connection-at-peer request-not-confirmed server-abort-before-response server-abort-mid-response peer-abort-idle peer-abort-mid-response peer-abort-after-response peer-abort-before-response orderly orderly-unread gave-up-waiting client-gave-up unknown"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        rsttrace__subcmd__replay)
            opts="-p -L -D -4 -6 -a -j -q -v -c -h --pid --container --unit --local-port --remote-port --port --addr --local-addr --remote-addr --ipv4 --ipv6 --netns --errno --end --fin --harm --cause --json --summary --rate-limit --time --color --ascii --quiet --verbose --count --fail-on --help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --pid)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                -p)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --container)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --unit)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --local-port)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                -L)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --remote-port)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                -D)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --port)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --addr)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --local-addr)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --remote-addr)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --netns)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --errno)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --end)
                    COMPREPLY=($(compgen -W "reset reset-received reset-sent timeout error fin" -- "${cur}"))
                    return 0
                    ;;
                --harm)
                    COMPREPLY=($(compgen -W "lost possible unknown none" -- "${cur}"))
                    return 0
                    ;;
                --cause)
                    COMPREPLY=($(compgen -W "admin-kill listener-closed keepalive-timeout retransmit-timeout connect-timeout user-timeout zero-window-timeout undelivered-after-close out-of-memory refused-by-icmp unreachable gave-up-connecting close-with-unread-data linger-zero disconnect data-after-close linger2-abort silent-close closed-port no-connection accept-queue-overflow time-wait protocol-error refused reset-before-accept connect-probe write-after-peer-close keepalive-race closed-before-answer reset-while-closing reset-after-local-fin stale-connection no-connection-at-peer request-not-confirmed server-abort-before-response server-abort-mid-response peer-abort-idle peer-abort-mid-response peer-abort-after-response peer-abort-before-response orderly orderly-unread gave-up-waiting client-gave-up unknown" -- "${cur}"))
                    return 0
                    ;;
                --rate-limit)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --time)
                    COMPREPLY=($(compgen -W "local utc relative" -- "${cur}"))
                    return 0
                    ;;
                --color)
                    COMPREPLY=($(compgen -W "auto always never" -- "${cur}"))
                    return 0
                    ;;
                --count)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                -c)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --fail-on)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        rsttrace__subcmd__report)
            opts="-o -h --output --help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --output)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                -o)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        rsttrace__subcmd__top)
            opts="-r -w -p -L -D -4 -6 -a -j -q -v -c -d -h --replay --record --record-size --record-time --record-files --keep --keep-size --trigger --pid --container --unit --local-port --remote-port --port --addr --local-addr --remote-addr --ipv4 --ipv6 --netns --errno --end --fin --harm --cause --cmdline --json --summary --rate-limit --time --color --ascii --quiet --verbose --count --fail-on --timers --error-log --log-format --unmatched --http --http-query --metrics --otlp --otlp-header --duration --join-timeout --max-sockets --buffer --syscall-hooks --without --interim --keep-privileges --help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --replay)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                -r)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --record)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                -w)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --record-size)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --record-time)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --record-files)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --keep)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --keep-size)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --trigger)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --pid)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                -p)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --container)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --unit)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --local-port)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                -L)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --remote-port)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                -D)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --port)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --addr)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --local-addr)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --remote-addr)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --netns)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --errno)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --end)
                    COMPREPLY=($(compgen -W "reset reset-received reset-sent timeout error fin" -- "${cur}"))
                    return 0
                    ;;
                --harm)
                    COMPREPLY=($(compgen -W "lost possible unknown none" -- "${cur}"))
                    return 0
                    ;;
                --cause)
                    COMPREPLY=($(compgen -W "admin-kill listener-closed keepalive-timeout retransmit-timeout connect-timeout user-timeout zero-window-timeout undelivered-after-close out-of-memory refused-by-icmp unreachable gave-up-connecting close-with-unread-data linger-zero disconnect data-after-close linger2-abort silent-close closed-port no-connection accept-queue-overflow time-wait protocol-error refused reset-before-accept connect-probe write-after-peer-close keepalive-race closed-before-answer reset-while-closing reset-after-local-fin stale-connection no-connection-at-peer request-not-confirmed server-abort-before-response server-abort-mid-response peer-abort-idle peer-abort-mid-response peer-abort-after-response peer-abort-before-response orderly orderly-unread gave-up-waiting client-gave-up unknown" -- "${cur}"))
                    return 0
                    ;;
                --cmdline)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --rate-limit)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --time)
                    COMPREPLY=($(compgen -W "local utc relative" -- "${cur}"))
                    return 0
                    ;;
                --color)
                    COMPREPLY=($(compgen -W "auto always never" -- "${cur}"))
                    return 0
                    ;;
                --count)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                -c)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --fail-on)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --timers)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --error-log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log-format)
                    COMPREPLY=($(compgen -W "nginx nginx-access haproxy envoy" -- "${cur}"))
                    return 0
                    ;;
                --metrics)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --otlp-header)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --duration)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                -d)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --join-timeout)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --max-sockets)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --buffer)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --without)
                    COMPREPLY=($(compgen -W "tcp_destroy_sock sock_recv_length sock_send_length sys_exit tcp_probe tcp_reset tcp_receive_reset tcp_send_reset tcp_v4_send_reset tcp_v6_send_reset inet_sock_set_state cgroup/getsockopt iter/task_file sched_process_fork sched_process_exec fentry fexit kprobe" -- "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
    esac
}

if [[ "${BASH_VERSINFO[0]}" -eq 4 && "${BASH_VERSINFO[1]}" -ge 4 || "${BASH_VERSINFO[0]}" -gt 4 ]]; then
    complete -F _rsttrace -o nosort -o bashdefault -o default rsttrace
else
    complete -F _rsttrace -o bashdefault -o default rsttrace
fi
