# Says which system this is, and has its curl ask its python.
. /etc/os-release
echo "this is $PRETTY_NAME"
for needed in /etc/ssl/certs/ca-certificates.crt /usr/bin/curl /usr/bin/python3; do
    [ -s "$needed" ] || { echo "this image lacks $needed" >&2; exit 1; }
done
cd /app || exit 1
python3 -m http.server --bind 127.0.0.1 8000 2> /dev/null &
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
    curl -sf http://127.0.0.1:8000/answer.txt && exit 0
    sleep 1
done
echo "python3 did not answer curl" >&2
exit 1
