"""SafeWatch's three training stages on SafeWorld, small enough for a CPU."""
