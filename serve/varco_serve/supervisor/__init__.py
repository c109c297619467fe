"""The other processes: started, watched and started again, with the queue in front of them."""
