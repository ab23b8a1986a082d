count=$(cat /data/count 2>/dev/null || echo 0)
count=$((count + 1))
echo "$count" > /data/count
echo "boot number $count"
