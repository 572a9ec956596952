//! The rules of EC2, checked on the simulator without a socket.
