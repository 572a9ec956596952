//! Who does not know the cluster yet is asked nothing.

use std::time::Duration;

use serde_json::json;
use sgp::dev::ReplicaOptions;

use crate::cluster::{eventually, namespace, plain_client, pod, start};
use crate::metrics::mutations;
use crate::proxy::Proxy;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_is_called_only_once_its_watches_are_in_sync() {
    let mut sandbox = start(2, &[]).await;
    let client = plain_client(&sandbox);
    namespace(&client, "shop", true, json!({})).await;
    let pods = Api::<Pod>::namespaced(client, "shop");
    let create_some = async |prefix: &str| {
        let pod = |number| pod(&format!("{prefix}-{number}"), json!({}));
        let parameters = PostParams::default();
        let creations = (0..20).map(|number| {
            let (pods, pod, parameters) = (&pods, pod(number), &parameters);
            // On a machine that is overloaded, nobody may be asked in time.
            async move {
                eventually("a pod's creation", async || {
                    match pods.create(parameters, &pod).await {
                        Ok(_) => Some(()),
                        Err(kube::Error::Api(status)) if status.code >= 500 => None,
                        Err(error) => panic!("{error}"),
                    }
                })
                .await
            }
        });
        futures::future::join_all(creations).await;
    };
    let proxy = Proxy::start(&sandbox, "shut", Duration::ZERO).await;
    proxy.shut();
    let options = ReplicaOptions {
        kubeconfig: Some(proxy.kubeconfig.clone()),
        ..ReplicaOptions::default()
    };
    let new = sandbox.spawn_webhook(&options).unwrap();
    let metrics_port = new.metrics_port();
    eventually("the new replica to listen", async || {
        std::net::TcpStream::connect(("127.0.0.1", metrics_port)).ok()
    })
    .await;

    create_some("before").await;
    assert!(!sandbox.webhooks()[2].is_ready());
    let before = mutations(&mut sandbox);
    assert!(before[0] + before[1] >= 20, "{before:?}");
    assert_eq!(before[2], 0, "{before:?}");

    proxy.open();
    sandbox.webhooks()[2].wait_until_ready().await.unwrap();
    // Connections stay where they are, so the others have to go.
    for old in sandbox.webhooks().drain(..2) {
        assert!(old.stop().await.unwrap().success());
    }
    create_some("after").await;
    let after = mutations(&mut sandbox);
    assert!(after[0] >= 20, "{after:?}");
}
